//! Bounds of the section `guard`, and whether a text is the URL of a database that it can read.
//!
//! Part of `check`, whose small tools it uses. No message has a part of a URL in it that could be the password.

use std::collections::BTreeSet;

use super::{Check, key};
use crate::config::Config;
use crate::config::guard::{GuardConfig, PostgresConfig, SourceConfig};
use crate::config::load::{ENVIRONMENT_PREFIX, Path};
use crate::types::units::Span;

impl Check {
    pub(super) fn guard(&mut self, config: &Config) {
        let Some(guard) = &config.guard else { return };
        let at = key("guard");
        let items = usize::try_from(guard.expected_items).unwrap_or(usize::MAX);
        self.number(&at.join("expected_items"), items, 1_000, 1_000_000_000);
        if !(0.0001..=0.5).contains(&guard.false_positive_rate.0) {
            self.say(
                at.join("false_positive_rate"),
                format!("must be from 0.01% to 50%, and is {}", guard.false_positive_rate),
            );
        }
        for (name, number, least, most) in [
            ("lookups_per_second", guard.lookups_per_second, 0, 100_000),
            ("unknown_per_minute", guard.unknown_per_minute, 1, 10_000_000),
        ] {
            self.number(&at.join(name), number as usize, least, most);
        }
        let (minute, day) = (Span::secs(60), Span::secs(86_400));
        self.span_from(&at.join("max_age"), guard.max_age, minute, day);
        self.span_from(
            &at.join("not_found").join("ttl"),
            guard.not_found.ttl,
            Span::secs(0),
            Span::secs(3600),
        );
        if let Some(why) = guard.database_url.as_deref().and_then(url_problem) {
            self.say(at.join("database_url"), why);
        }
        let mut seen = BTreeSet::new();
        for (index, source) in guard.sources.iter().enumerate() {
            let at = at.join("sources").join(index);
            if !seen.insert(source.name()) {
                self.say(
                    at.join("type"),
                    format!("there is a source `{}` already", source.name()),
                );
            }
            if let SourceConfig::Postgres(postgres) = source {
                self.postgres(&at, postgres, guard);
            }
        }
    }

    fn postgres(&mut self, at: &Path, postgres: &PostgresConfig, guard: &GuardConfig) {
        match postgres.url.as_deref() {
            Some(url) => {
                if let Some(why) = url_problem(url) {
                    self.say(at.join("url"), why);
                }
            }
            None if guard.database_url.is_none() => self.say(
                at.join("url"),
                format!(
                    "needed with `type: postgres`, such as postgres://readonly@db/dify; in the environment it is \
                     {ENVIRONMENT_PREFIX}GUARD__DATABASE_URL"
                ),
            ),
            None => {}
        }
        let (minute, week) = (Span::secs(60), Span::secs(7 * 86_400));
        self.span_from(
            &at.join("refresh"),
            postgres.refresh,
            Span::secs(1),
            Span::secs(3600),
        );
        self.span_from(&at.join("rebuild"), postgres.rebuild, minute, week);
        if postgres.rebuild < postgres.refresh {
            self.say(
                at.join("rebuild"),
                format!(
                    "{} is less than `refresh`, {}",
                    postgres.rebuild, postgres.refresh
                ),
            );
        }
        if guard.max_age <= postgres.refresh {
            self.say(
                at.join("refresh"),
                format!(
                    "{} must be less than `guard.max_age`, {}",
                    postgres.refresh, guard.max_age
                ),
            );
        }
        self.number(&at.join("connections"), postgres.connections, 1, 1000);
        if postgres.pool_share.0 <= 0.0 {
            self.say(at.join("pool_share"), "must be more than 0%");
        }
    }
}

/// What is wrong with the URL of a database, and what would be right, without a full stop.
fn url_problem(url: &str) -> Option<&'static str> {
    if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Some("has a blank or `#` in it; in a password they are written %20 and %23");
    }
    let rest = url
        .strip_prefix("postgres://")
        .or(url.strip_prefix("postgresql://"));
    let Some(rest) = rest else {
        return Some("must begin with postgres:// or postgresql://");
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if query.contains('@') || database.contains('@') {
        return Some(
            "has an `@` where none can be; `@`, `/` and `?` of a password are written %40, %2F and %3F",
        );
    }
    let (user, server) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains('@') {
        return Some("has two `@`; in a password it is written %40");
    }
    if user.is_empty() || user.starts_with(':') {
        return Some("a user is needed, as in postgres://readonly@host/database");
    }
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (server, None),
    };
    if host.is_empty() {
        return Some("a host is needed, as in postgres://readonly@host/database");
    }
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
        return Some("the port is not a number from 1 to 65535");
    }
    if database.is_empty() || database.contains('/') {
        return Some("a database is needed, as in postgres://readonly@host/database");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::url_problem;

    #[test]
    fn urls_of_databases_are_known_by_their_parts() {
        for url in [
            "postgres://readonly@db/dify",
            "postgresql://ro:p%40w@db.example:5433/dify?sslmode=require",
            "postgres://ro:p:w@[::1]:5432/dify",
            "postgres://ro@[fe80::1]/dify",
        ] {
            assert_eq!(url_problem(url), None, "{url}");
        }
        for (url, expected) in [
            ("", "must begin with postgres://"),
            ("redis://ro@db/dify", "must begin with postgres://"),
            ("postgres://db/dify", "a user is needed"),
            ("postgres://:hunter2@db/dify", "a user is needed"),
            ("postgres://ro:hunter2@/dify", "a host is needed"),
            ("postgres://ro:hunter2@:5432/dify", "a host is needed"),
            ("postgres://ro:hunter2@db", "a database is needed"),
            ("postgres://ro:hunter2@db/a/b", "a database is needed"),
            ("postgres://ro:hun@ter2@db/dify", "has two `@`"),
            ("postgres://ro:hunt/er2@db/dify", "has an `@` where none can be"),
            ("postgres://ro:hunt er2@db/dify", "has a blank"),
            ("postgres://ro:hunter2@db:0/dify", "the port is not"),
            ("postgres://ro:hunter2@db:x/dify", "the port is not"),
        ] {
            let problem = url_problem(url).unwrap_or_default();
            assert!(problem.starts_with(expected), "{url}: {problem}");
            assert!(!problem.contains("hunt"), "{problem}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_url_makes_the_check_panic(text in "(postgres://)?\\PC{0,20}[@:/?#\\[\\]]?\\PC{0,20}") {
            let _ = url_problem(&text);
        }
    }
}

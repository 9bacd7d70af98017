//! Which upstream serves a path: the configured prefixes, longest first, on segment borders.

use std::time::Duration;

use crate::config::{Config, UpstreamConfig};
use crate::types::request::{Timeouts, UpstreamId};

use super::row::Limit;

/// The slowest upload that is waited for, on average, in bytes per second.
const UPLOAD_RATE: u64 = 16 << 10;

/// What this stage wants to know of an upstream.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) id: UpstreamId,
    /// Whether it is dify-api, so that the route table holds.
    pub(super) is_dify: bool,
    /// Whether it has, or may find, a second cluster.
    pub(super) has_standby: bool,
    short: Timeouts,
    write: Timeouts,
    idle: Timeouts,
}

impl Target {
    fn new(id: usize, is_dify: bool, config: &UpstreamConfig) -> Self {
        let total = |limit| Timeouts {
            total: Some(limit),
            idle: None,
        };
        Self {
            id: UpstreamId(id),
            is_dify,
            has_standby: config.may_have_standby(),
            short: total(config.timeouts.total.0),
            write: total(config.timeouts.write.0),
            idle: Timeouts {
                total: None,
                idle: Some(config.timeouts.idle.0),
            },
        }
    }

    /// `length`: the declared length of the request's body, in bytes.
    pub(super) fn timeouts(&self, limit: Limit, length: Option<u64>) -> Timeouts {
        match limit {
            Limit::BySize => Timeouts {
                total: self
                    .write
                    .total
                    .zip(length)
                    .map(|(write, length)| write + Duration::from_secs(length / UPLOAD_RATE)),
                idle: self.idle.idle,
            },
            Limit::Short => self.short,
            Limit::Write => self.write,
            Limit::Idle => self.idle,
        }
    }
}

/// Prefixes and the upstreams that they lead to.
#[derive(Debug)]
pub(super) struct Upstreams {
    targets: Vec<Target>,
    /// Prefix and index in `targets`; longest prefix first.
    prefixes: Vec<(Box<str>, usize)>,
}

impl Upstreams {
    /// # Errors
    /// When there is no upstream, a prefix does not begin with `/`, a route names an unknown upstream, or
    /// nothing says which of several upstreams is meant.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let names: Vec<&str> = config.upstreams.keys().map(String::as_str).collect();
        let only = names.len() == 1;
        let targets = config
            .upstreams
            .iter()
            .enumerate()
            .map(|(id, (name, upstream))| Target::new(id, only || name == "api", upstream))
            .collect();
        let find = |name: &str| names.iter().position(|known| *known == name);
        let mut prefixes: Vec<(Box<str>, usize)> = Vec::new();
        for route in &config.routes {
            let (prefix, name) = (&route.prefix, &route.upstream);
            if !prefix.starts_with('/') {
                return Err(format!("routes: the prefix `{prefix}` does not begin with `/`"));
            }
            let id = find(name).ok_or_else(|| {
                let known = names.join("`, `");
                format!("routes: `{prefix}` leads to the upstream `{name}`, but there are only `{known}`")
            })?;
            prefixes.push((prefix.as_str().into(), id));
        }
        if names.is_empty() {
            return Err("upstreams: there is none".into());
        }
        if prefixes.is_empty() {
            let id = if only { Some(0) } else { find("api") };
            let id = id.ok_or("routes: missing, and none of the upstreams is called `api`")?;
            prefixes.push(("/".into(), id));
        }
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(Self { targets, prefixes })
    }

    /// The upstream of a raw path; `/v1` takes `/v1` and `/v1/…`, `/e/` takes `/e/…`, `/` takes everything.
    pub(super) fn find(&self, path: &str) -> Option<&Target> {
        let takes = |prefix: &str| {
            prefix == "/"
                || path
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
        };
        let (_, id) = self.prefixes.iter().find(|(prefix, _)| takes(prefix))?;
        self.targets.get(*id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;

    fn config(upstreams: &[&str], routes: &[(&str, &str)]) -> Config {
        let route = |(prefix, upstream): &(&str, &str)| RouteConfig {
            prefix: (*prefix).into(),
            upstream: (*upstream).into(),
        };
        Config {
            upstreams: upstreams
                .iter()
                .map(|name| ((*name).into(), UpstreamConfig::default()))
                .collect(),
            routes: routes.iter().map(route).collect(),
            ..Config::default()
        }
    }

    #[test]
    fn an_upload_has_time_by_its_size_and_without_a_size_only_between_two_reads() {
        let upstreams = Upstreams::new(&config(&["api"], &[])).unwrap();
        let target = upstreams.find("/v1/files/upload").unwrap();
        let seconds = |length| {
            target
                .timeouts(Limit::BySize, length)
                .total
                .map(|total| total.as_secs())
        };
        assert_eq!(seconds(Some(0)), Some(60));
        assert_eq!(seconds(Some(16 << 20)), Some(60 + 1024));
        assert_eq!(seconds(None), None);
        let idle = target.timeouts(Limit::BySize, None).idle;
        assert_eq!(idle, Some(Duration::from_secs(300)));
    }

    #[test]
    fn the_longest_prefix_wins_and_prefixes_end_at_segments() {
        let names = ["api", "plugin_daemon", "web"];
        let routes = [
            ("/", "web"),
            ("/v1", "api"),
            ("/v1/web", "web"),
            ("/e/", "plugin_daemon"),
        ];
        let upstreams = Upstreams::new(&config(&names, &routes)).unwrap();
        for (path, name) in [
            ("/v1", "api"),
            ("/v1/info", "api"),
            ("/v10", "web"),
            ("/v1/web/x", "web"),
            ("/v1/webx", "api"),
            ("/e/hook", "plugin_daemon"),
            ("/e", "web"),
            ("//v1", "web"),
            ("*", "web"),
            ("", "web"),
        ] {
            let found = upstreams.find(path).unwrap();
            assert_eq!(names[found.id.0], name, "{path}");
            assert_eq!(found.is_dify, name == "api", "{path}");
        }
    }

    #[test]
    fn without_routes_everything_goes_to_api_or_to_the_only_upstream() {
        let several = Upstreams::new(&config(&["a", "api", "z"], &[])).unwrap();
        assert_eq!(several.find("/x").unwrap().id, UpstreamId(1));
        let only = Upstreams::new(&config(&["dify"], &[])).unwrap();
        assert!(only.find("/x").unwrap().is_dify);
    }

    #[test]
    fn a_path_that_no_prefix_takes_has_no_upstream() {
        let upstreams = Upstreams::new(&config(&["api"], &[("/v1", "api")])).unwrap();
        assert!(upstreams.find("/console").is_none());
    }

    #[test]
    fn routes_that_cannot_be_carried_out_are_errors_that_name_the_route() {
        let error = |upstreams: &[&str], routes: &[(&str, &str)]| {
            Upstreams::new(&config(upstreams, routes))
                .map(|_| ())
                .unwrap_err()
        };
        assert!(error(&["api"], &[("/v1", "apo")]).contains("`/v1` leads to the upstream `apo`"));
        assert!(error(&["api"], &[("v1", "api")]).contains("`v1`"));
        assert!(error(&[], &[]).contains("none"));
        assert!(error(&["a", "b"], &[]).contains("`api`"));
    }
}

//! The guard in the configuration: defaults, what is refused, what is never shown.

use super::*;
use crate::config::guard::{GuardConfig, GuardMode, PostgresConfig, SourceConfig};

/// Loads a file with these keys under `guard`, and the default upstream.
fn guard(keys: &str) -> Result<Loaded, String> {
    load_text(&format!("guard: {{{keys}}}"))
}

#[test]
fn without_the_section_it_is_off_and_an_empty_section_observes() {
    assert_eq!(load_text(ONE_UPSTREAM).unwrap().config.guard, None);
    assert_eq!(load_text("guard:").unwrap().config.guard, None);
    let loaded = guard("").unwrap();
    let config = loaded.config.guard.clone().unwrap();
    assert_eq!(config, GuardConfig::default());
    assert_eq!((config.mode, config.postgres()), (GuardMode::Observe, None));
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    let off = guard("mode: off").unwrap();
    assert_eq!(off.config.guard.as_ref().unwrap().mode, GuardMode::Off);
    assert_eq!(load_text(&off.print()).unwrap().config, off.config);
}

#[test]
fn every_key_is_taken_and_printed_so_that_it_loads_again() {
    let loaded = guard(
        "mode: enforce, expected_items: 5000, false_positive_rate: 0.1%, max_age: 10m, lookups_per_second: 0, \
         unknown_per_minute: 30, not_found: {ttl: 0s}, sources: [{type: postgres, url: 'postgres://ro@db/dify', \
         refresh: 2s, rebuild: 30m, connections: 10, pool_share: 50%, ca: Cargo.toml}, {type: learned}]",
    )
    .unwrap();
    let config = loaded.config.guard.as_ref().unwrap();
    let (postgres, url) = config.postgres().unwrap();
    assert_eq!(url, "postgres://ro@db/dify");
    assert_eq!((postgres.usable(), postgres.refresh), (5, Span::secs(2)));
    assert_eq!(
        (config.mode, config.expected_items, config.not_found.ttl),
        (GuardMode::Enforce, 5000, Span::secs(0))
    );
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
}

#[test]
fn the_sketch_is_a_guard_that_enforces() {
    let sketch = include_str!("../../../../tests/fixtures/config-sketch.yaml");
    let config = load_text(sketch).unwrap().config.guard.unwrap();
    let (postgres, url) = config.postgres().unwrap();
    assert_eq!(url, "postgres://readonly@db/dify");
    let default = PostgresConfig::default();
    assert_eq!(
        (postgres.refresh, postgres.rebuild),
        (Span::secs(5), default.rebuild)
    );
    assert_eq!(postgres.usable(), 4);
    assert_eq!(config.mode, GuardMode::Enforce);
}

#[test]
fn the_url_of_the_database_can_come_from_the_environment_alone() {
    let text = "guard: {sources: [{type: postgres}]}";
    let variable = [("DIFY_EDGE__GUARD__DATABASE_URL", "postgres://ro:hunter2@db/dify")];
    let loaded = load_with(text, &variable, &Flags::default()).unwrap();
    let config = loaded.config.guard.as_ref().unwrap();
    assert_eq!(config.postgres().unwrap().1, "postgres://ro:hunter2@db/dify");
    let message = load_text(text).unwrap_err();
    assert!(
        message.starts_with("edge.yaml:1:19: guard.sources[0].url: needed with `type: postgres`")
            && message.contains(variable[0].0),
        "{message}"
    );
    let own = "guard: {sources: [{type: postgres, url: 'postgres://own@db/dify'}]}";
    let loaded = load_with(own, &variable, &Flags::default()).unwrap();
    assert_eq!(
        loaded.config.guard.unwrap().postgres().unwrap().1,
        "postgres://own@db/dify"
    );
    let unused = load_with("guard: {}", &variable, &Flags::default())
        .unwrap()
        .warnings();
    assert!(
        unused.len() == 1 && unused[0].contains("guard.database_url: without effect"),
        "{unused:?}"
    );
}

#[test]
fn no_password_of_a_database_is_shown() {
    let loaded = guard(
        "database_url: 'postgres://a:hunter2@db/dify', sources: [{type: postgres, url: 'postgres://b:hunter3@db/dify'}]",
    )
    .unwrap();
    let debug = format!("{:?}", loaded.config);
    let shown = [loaded.print(), loaded.config.redacted().to_string(), debug];
    for shown in &shown {
        assert!(!shown.contains("hunter"), "{shown}");
    }
    assert!(
        shown[0].contains("url: \"postgres://b:***@db/dify\""),
        "{}",
        shown[0]
    );
    assert!(matches!(
        &loaded.config.guard.unwrap().sources[..],
        [SourceConfig::Postgres(_)]
    ));
}

#[test]
fn values_of_the_guard_out_of_bounds_are_refused() {
    let postgres =
        |keys: &str| format!("sources: [{{type: postgres, url: 'postgres://ro@db/dify', {keys}}}]");
    for (keys, expected) in [
        (
            "mode: of",
            "guard.mode: `of` is not known here; did you mean `off`?",
        ),
        ("expected_items: 10", "guard.expected_items: must be from 1000 to"),
        (
            "false_positive_rate: 0%",
            "guard.false_positive_rate: must be from 0.01% to 50%, and is 0%",
        ),
        ("false_positive_rate: 60%", "guard.false_positive_rate: must be"),
        ("max_age: 1s", "guard.max_age: must be from 1m to 1d, and is 1s"),
        ("lookups_per_second: 1000000", "guard.lookups_per_second: must be"),
        (
            "unknown_per_minute: 0",
            "guard.unknown_per_minute: must be from 1",
        ),
        (
            "not_found: {ttl: 2h}",
            "guard.not_found.ttl: must be from 0s to 1h",
        ),
        (
            "database_url: x",
            "guard.database_url: must begin with postgres://",
        ),
        (
            "max_agee: 1m",
            "guard.max_agee: unknown key; did you mean `max_age`?",
        ),
        ("sources: [{type: mysql}]", "guard.sources[0]"),
        ("sources: [{url: x}]", "the key `type` is missing"),
        (
            "sources: [{type: learned, url: x}]",
            "unknown key; no other stands here",
        ),
        (
            "sources: [{type: learned}, {type: learned}]",
            "guard.sources[1].type: there is a source `learned` already",
        ),
        (&postgres("refersh: 1s"), "unknown key; did you mean `refresh`?"),
        (
            &postgres("refresh: 0s"),
            "guard.sources[0].refresh: must be from 1s to 1h",
        ),
        (
            &postgres("refresh: 20m"),
            "20m must be less than `guard.max_age`, 15m",
        ),
        (
            &postgres("refresh: 2m, rebuild: 1m"),
            "guard.sources[0].rebuild: 1m is less than `refresh`, 2m",
        ),
        (
            &postgres("connections: 0"),
            "guard.sources[0].connections: must be from 1",
        ),
        (
            &postgres("pool_share: 0%"),
            "guard.sources[0].pool_share: must be more than 0%",
        ),
    ] {
        let message = guard(keys).unwrap_err();
        assert!(message.contains(expected), "{keys}: {message}");
    }
}

//! The Redis tier in the configuration: what it needs, what is refused, what is never shown.

use super::*;
use crate::config::cache::{CacheType, RedisConfig};
use crate::types::request::CacheClass;

/// Loads a file with these keys under `cache`, and the default upstream.
fn cache(keys: &str) -> Result<Loaded, String> {
    load_text(&format!("cache: {{{keys}}}"))
}

#[test]
fn one_line_of_json_is_a_whole_configuration_when_the_url_is_in_the_environment() {
    let text = r#"{ "cache": { "type": "redis", "ttl_seconds": 3600, "enable_local": true } }"#;
    let variable = [("DIFY_EDGE__CACHE__REDIS__URL", "redis://cache:6379/2")];
    let loaded = load_with(text, &variable, &Flags::default()).unwrap();
    let cache = &loaded.config.cache;
    assert_eq!(
        (cache.r#type, cache.ttl_seconds, cache.enable_local),
        (CacheType::Redis, 3600, true)
    );
    assert_eq!(cache.redis.url.as_deref(), Some("redis://cache:6379/2"));
    assert_eq!(
        loaded.config.upstreams["api"].replicas[0].url,
        "http://127.0.0.1:5001"
    );
    assert_eq!(loaded.warnings(), Vec::<String>::new());
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);

    let message = load_text(text).unwrap_err();
    assert!(
        message.starts_with("edge.yaml: cache.redis.url: needed with `cache.type: redis`")
            && message.contains("DIFY_EDGE__CACHE__REDIS__URL"),
        "{message}"
    );
}

#[test]
fn the_flag_wins_over_the_environment_and_that_over_the_file() {
    let text = "cache: {type: redis, redis: {url: 'redis://file'}}";
    let variable = [("DIFY_EDGE__CACHE__REDIS__URL", "redis://variable")];
    let flags = Flags {
        redis: Some("redis://flag".into()),
        ..Flags::default()
    };
    let url = |text: &str, environment: &[(&str, &str)], flags: &Flags| {
        let cache = load_with(text, environment, flags).unwrap().config.cache;
        (cache.r#type, cache.redis.url.unwrap())
    };
    let redis = |url: &str| (CacheType::Redis, url.to_owned());
    assert_eq!(url(text, &[], &Flags::default()), redis("redis://file"));
    assert_eq!(url(text, &variable, &Flags::default()), redis("redis://variable"));
    assert_eq!(url(text, &variable, &flags), redis("redis://flag"));
    assert_eq!(url("cache: {type: memory}", &[], &flags), redis("redis://flag"));
}

#[test]
fn values_of_the_tier_out_of_bounds_are_refused() {
    for (keys, expected) in [
        (
            "redis: {url: 'http://h'}",
            "edge.yaml:1:17: cache.redis.url: must begin with redis://",
        ),
        (
            "type: redis, redis: {url: 'redis-sentinel://h'}",
            "cache.redis.url: needs the name",
        ),
        (
            "redis: {timeout: 0}",
            "cache.redis.timeout: must be from 1ms to 10s, and is 0s",
        ),
        ("redis: {timeout: 11s}", "cache.redis.timeout: must be from"),
        ("redis: {prefix: ''}", "cache.redis.prefix: must be 1 to 64"),
        ("redis: {prefix: 'a b'}", "cache.redis.prefix: must be 1 to 64"),
        ("redis: {prefix: 'a{b}'}", "cache.redis.prefix: must be 1 to 64"),
        ("redis: {prefix: 'a*'}", "cache.redis.prefix: must be 1 to 64"),
        ("redis: {prefix: 'é'}", "cache.redis.prefix: must be 1 to 64"),
        (
            "redis: {max_entry_bytes: 1000}",
            "max_entry_bytes: must be from 1KiB to 64MiB, and is 1000",
        ),
        ("redis: {max_entry_bytes: 65MiB}", "max_entry_bytes: must be from"),
        (
            "redis: {coherence_window: 999ms}",
            "cache.redis.coherence_window: must be from 1s to 1h",
        ),
        (
            "redis: {coherence_window: 61m}",
            "cache.redis.coherence_window: must be",
        ),
        (
            "redis: {lease: 99ms}",
            "cache.redis.lease: must be from 100ms to 1m",
        ),
        ("redis: {lease: 61s}", "cache.redis.lease: must be"),
        (
            "unsettled_window: 61m",
            "cache.unsettled_window: must be from 0s to 1h",
        ),
        (
            "redis: {url: 'redis://h', ca: /ca.pem}",
            "cache.redis.ca: needs TLS",
        ),
        (
            "redis: {secret: hunter2hunter2}",
            "cache.redis.secret: a secret has from 16 to 1024 characters, and this one has 14",
        ),
        (
            "redis: {secret: hunter2hunter2hunter2, secret_file: /s}",
            "cache.redis.secret_file: only one of",
        ),
        (
            "redis: {secret: 7269726972697269}",
            "cache.redis.secret: expected a string; write it in quotes",
        ),
    ] {
        let message = cache(keys).unwrap_err();
        assert!(message.contains(expected), "{keys}: {message}");
        assert!(
            !message.contains("hunter2") && !message.contains("7269"),
            "{message}"
        );
    }
    let prefix = "p".repeat(65);
    assert!(cache(&format!("redis: {{prefix: {prefix}}}")).is_err());
    let edges = "type: redis, unsettled_window: 0, redis: {url: 'rediss://h', ca: /c, timeout: 10s, prefix: p, \
                 max_entry_bytes: 64MiB, coherence_window: 1s, lease: 100ms}";
    cache(edges).unwrap();
    let edges = "unsettled_window: 1h, redis: {timeout: 1ms, max_entry_bytes: 1KiB, coherence_window: 1h, lease: 60s}";
    cache(edges).unwrap();
}

#[test]
fn a_prefix_in_the_environment_may_end_with_a_colon() {
    let variable = [("DIFY_EDGE__CACHE__REDIS__PREFIX", "edge-2:")];
    let loaded = load_with("", &variable, &Flags::default()).unwrap();
    assert_eq!(loaded.config.cache.redis.prefix, "edge-2:");
}

#[test]
fn what_has_no_effect_and_what_cannot_be_read_is_warned_of() {
    let unused = cache("redis: {url: 'redis://:hunter2@h'}, classes: {not_found: {shared_flight: true}}")
        .unwrap()
        .warnings()
        .join("\n");
    assert!(
        unused.contains("edge.yaml:1:17: cache.redis.url: without effect: `cache.type` is `memory`"),
        "{unused}"
    );
    assert!(
        unused.contains("cache.classes.not_found.shared_flight: accepted, but without effect"),
        "{unused}"
    );
    assert!(!unused.contains("hunter2"), "{unused}");

    let files = "redis: {url: 'rediss://h', ca: /nowhere/ca, secret_file: /nowhere/secret}";
    let warnings = cache(&format!("type: redis, {files}"))
        .unwrap()
        .warnings()
        .join("\n");
    for file in ["ca", "secret_file"] {
        assert!(
            warnings.contains(&format!("cache.redis.{file}: cannot read /nowhere/")),
            "{warnings}"
        );
    }
}

#[test]
fn the_secret_and_the_password_are_not_shown_anywhere() {
    let loaded =
        cache("type: redis, redis: {url: 'redis://u:hunter2@h', secret: hunter2hunter2hunter2}").unwrap();
    let printed = loaded.print();
    for text in [
        &printed,
        &loaded.config.redacted().to_string(),
        &format!("{:?}", loaded.config),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(printed.contains("secret: \"***\"  # "), "{printed}");
    assert!(printed.contains("url: \"redis://u:***@h\"  # "), "{printed}");
    // The stars do not pass for a secret: whoever loads what was printed has to write it anew.
    assert!(
        load_text(&printed)
            .unwrap_err()
            .contains("cache.redis.secret: a secret has")
    );
}

#[test]
fn the_secret_is_the_written_one_or_that_of_the_file() {
    let directory = TempDir::new();
    let file = directory.0.join("secret");
    let from_file = |text: &[u8]| {
        std::fs::write(&file, text).unwrap();
        let redis = RedisConfig {
            secret_file: Some(file.clone()),
            ..RedisConfig::default()
        };
        redis.secret()
    };
    assert_eq!(RedisConfig::default().secret(), Ok(None));
    let written = RedisConfig {
        secret: Some("hunter2hunter2hunter2".into()),
        ..RedisConfig::default()
    };
    assert_eq!(written.secret(), Ok(Some("hunter2hunter2hunter2".into())));
    assert_eq!(
        from_file(b"\n hunter2hunter2hunter2 \n"),
        Ok(Some("hunter2hunter2hunter2".into()))
    );
    for (text, expected) in [
        (&b"hunter2"[..], "a secret has from 16 to 1024 characters"),
        (&b"hunter2".repeat(1000)[..], "a secret has from 16"),
        (b"", "a secret has from 16"),
        (b"hunter2hunter2hunter2\xff", "cannot be read: "),
    ] {
        let message = from_file(text).unwrap_err();
        let place = format!("cache.redis.secret_file: {}: ", file.display());
        assert!(
            message.starts_with(&place) && message.contains(expected) && !message.contains("hunter2"),
            "{message}"
        );
    }
    std::fs::remove_file(&file).unwrap();
    let redis = RedisConfig {
        secret_file: Some(file.clone()),
        ..RedisConfig::default()
    };
    assert!(redis.secret().unwrap_err().contains("cannot be read: "));
}

#[test]
fn flights_are_shared_where_it_is_worth_waiting_or_as_it_is_written() {
    let shared = |keys: &str| {
        let config = cache(keys).unwrap().config.cache;
        [
            CacheClass::Never,
            CacheClass::Metadata,
            CacheClass::Listing,
            CacheClass::Run,
            CacheClass::Origin,
        ]
        .map(|class| config.shares_flight(class))
    };
    assert_eq!(shared(""), [false, true, false, false, true]);
    assert_eq!(
        shared("classes: {metadata: {ttl: 30s}}"),
        [false, true, false, false, true]
    );
    assert_eq!(
        shared("classes: {metadata: {ttl: 29s}}"),
        [false, false, false, false, true]
    );
    assert_eq!(shared("ttl_seconds: 29"), [false, false, false, false, true]);
    let turned = "classes: {metadata: {shared_flight: false}, listing: {shared_flight: true}, \
                  run: {shared_flight: true}, origin: {shared_flight: false}}";
    assert_eq!(shared(turned), [false, false, true, true, false]);
    let on = "classes: {metadata: {ttl: 1s, shared_flight: true}}";
    assert!(shared(on)[1]);
}

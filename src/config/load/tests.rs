//! Loading as a whole: what wins, what is refused and how it is said, what is printed.

mod affinity;
mod breaker;
mod failover;
mod guard;
mod lanes;
mod redis;
mod replicas;
mod retry;
mod scrape;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::cache::SetCookie;
use crate::types::units::{Ratio, Size, Span};

/// Loads `text` as if it stood in a file called `edge.yaml`.
fn load_text(text: &str) -> Result<Loaded, String> {
    load_with(text, &[], &Flags::default())
}

fn load_with(text: &str, environment: &[(&str, &str)], flags: &Flags) -> Result<Loaded, String> {
    let directory = TempDir::new();
    let file = directory.0.join("edge.yaml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        flags: flags.clone(),
    };
    let prefix = format!("{}/", directory.0.display());
    load(&sources).map_err(|error| error.to_string().replace(&prefix, ""))
}

struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dify-edge-load-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ONE_UPSTREAM: &str = "upstreams: {api: {replicas: [{url: 'http://127.0.0.1:5001'}]}}\n";

/// The error that `text`, with an upstream added, is refused with.
fn refusal(text: &str) -> String {
    load_text(&format!("{ONE_UPSTREAM}{text}")).unwrap_err()
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file_and_that_over_defaults() {
    let text = "upstreams: {api: {replicas: [{url: 'http://file:1'}], connections: {limit: 50, queue: 7}}}
admin: {address: '127.0.0.1:1'}
cache: {ttl_seconds: 100}";
    let environment = [
        ("DIFY_EDGE__UPSTREAMS__API__CONNECTIONS__LIMIT", "10"),
        ("DIFY_EDGE__CACHE__TTL_SECONDS", "600"),
        ("DIFY_EDGE__CACHE__CLASSES", "{listing: {ttl: 1s}}"),
        ("DIFY_EDGE__ADMIN__ADDRESS", "[::1]:2"),
        ("DIFY_EDGE__LOG__LEVEL", ""),
        ("DIFY_EDGE_OTHER", "ignored"),
        ("PATH", "/bin"),
    ];
    let flags = Flags {
        upstream: vec!["http://flag:1".into(), "http://flag:2".into()],
        listen: vec!["127.0.0.1:0".into()],
        admin: Some("127.0.0.1:3".into()),
        redis: None,
    };
    let only_environment = load_with(text, &environment, &Flags::default()).unwrap().config;
    assert_eq!(only_environment.admin.address.to_string(), "[::1]:2");

    let config = load_with(text, &environment, &flags).unwrap().config;
    let api = &config.upstreams["api"];
    assert_eq!(api.connections.limit, 10);
    assert_eq!(api.connections.queue, 7);
    assert_eq!(api.connections.pool_share, Ratio(0.8));
    assert_eq!(
        api.replicas.iter().map(|r| r.url.as_str()).collect::<Vec<_>>(),
        ["http://flag:1", "http://flag:2"]
    );
    assert_eq!(config.admin.address.port(), 3);
    assert_eq!(config.listen.len(), 1);
    assert_eq!(config.cache.ttl_seconds, 600);
    assert_eq!(config.cache.classes.listing.ttl, Span::secs(1));
    assert_eq!(config.cache.classes.metadata.ttl, Span::secs(60));
    assert_eq!(config.log.level, "info");
}

#[test]
fn without_a_file_an_upstream_flag_is_enough() {
    let sources = Sources {
        flags: Flags {
            upstream: vec!["http://127.0.0.1:5001".into()],
            ..Flags::default()
        },
        ..Sources::default()
    };
    let config = load(&sources).unwrap().config;
    assert_eq!(config.upstreams["api"].replicas[0].url, "http://127.0.0.1:5001");
}

#[test]
fn upstreams_that_nobody_names_are_the_neighbour_in_the_pod() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config.upstreams.len(), 1);
    let api = &loaded.config.upstreams["api"];
    assert_eq!(
        (api.replicas.len(), api.replicas[0].url.as_str()),
        (1, "http://127.0.0.1:5001")
    );
    assert!(
        loaded
            .print()
            .contains("      - url: \"http://127.0.0.1:5001\"  # default\n")
    );
    // A section whose keys are all commented out.
    assert_eq!(load_text("upstreams:\n").unwrap().config, loaded.config);
    // Who names one has that one alone.
    let other = load_text("upstreams: {web: {replicas: [{url: 'http://h'}]}}").unwrap();
    assert_eq!(other.config.upstreams.keys().collect::<Vec<_>>(), ["web"]);
    let variable = [("DIFY_EDGE__UPSTREAMS__WEB__REPLICAS", "[{url: 'http://h'}]")];
    let other = load_with("", &variable, &Flags::default()).unwrap();
    assert_eq!(other.config.upstreams.keys().collect::<Vec<_>>(), ["web"]);
}

#[test]
fn upstreams_written_empty_are_refused() {
    let expected = "edge.yaml:1:1: upstreams: at least one upstream is needed";
    assert!(load_text("upstreams: {}").unwrap_err().starts_with(expected));
    let variable = [("DIFY_EDGE__UPSTREAMS", "{}")];
    let message = load_with("", &variable, &Flags::default()).unwrap_err();
    assert!(
        message.starts_with("environment DIFY_EDGE__UPSTREAMS: upstreams: at least one"),
        "{message}"
    );
}

#[test]
fn a_key_written_in_a_section_leaves_the_section_s_other_defaults_alone() {
    let text = format!("{ONE_UPSTREAM}cache:\n  classes:\n    metadata: {{ set_cookie: strip }}\nlimits:\n");
    let loaded = load_text(&text).unwrap();
    let metadata = &loaded.config.cache.classes.metadata;
    assert_eq!(metadata.set_cookie, SetCookie::Strip);
    assert_eq!(metadata.ttl, Span::secs(60));
    assert_eq!(loaded.config.limits.header_bytes, Size::kib(32));
}

#[test]
fn unknown_keys_are_refused_with_place_and_nearest_key() {
    for (text, expected) in [
        (
            "cache:\n  ttl_second: 5\n",
            "edge.yaml:3:3: cache.ttl_second: unknown key; did you mean `ttl_seconds`?",
        ),
        (
            "cahce: {}\n",
            "edge.yaml:2:1: cahce: unknown key; did you mean `cache`?",
        ),
        (
            "drain-timeout: 5s\n",
            "edge.yaml:2:1: drain-timeout: unknown key; did you mean `drain_timeout`?",
        ),
        (
            "ttl_seconds: 5\n",
            "edge.yaml:2:1: ttl_seconds: unknown key; did you mean `cache.ttl_seconds`?",
        ),
        (
            "log: {colour: red}\n",
            "edge.yaml:2:7: log.colour: unknown key; valid here: format, level, access, access_sample",
        ),
        (
            "cache: {type: mem}\n",
            "edge.yaml:2:9: cache.type: `mem` is not known here; did you mean `memory`?",
        ),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(expected), "{message}");
    }
    let variable = [("DIFY_EDGE__CACHE__TTL_SECOND", "5")];
    assert_eq!(
        load_with(ONE_UPSTREAM, &variable, &Flags::default()).unwrap_err(),
        "environment DIFY_EDGE__CACHE__TTL_SECOND: cache.ttl_second: unknown key; did you mean `ttl_seconds`?"
    );
}

#[test]
fn values_of_a_wrong_kind_are_refused_with_what_is_expected() {
    for (text, expected) in [
        (
            "cache: 5",
            "edge.yaml:2:1: cache: expected a map of keys, found integer `5`",
        ),
        (
            "cache: {ttl_seconds: abc}",
            "edge.yaml:2:9: cache.ttl_seconds: expected a whole number, found string \"abc\"",
        ),
        (
            "cache: {ttl_seconds:}",
            "edge.yaml:2:9: cache.ttl_seconds: expected a whole number, found nothing",
        ),
        (
            "drain_timeout: -1",
            "edge.yaml:2:1: drain_timeout: expected a duration like 250ms",
        ),
        (
            "drain_timeout: 5 parsecs",
            "edge.yaml:2:1: drain_timeout: `5 parsecs` is not a duration",
        ),
        (
            "limits: {header_bytes: true}",
            "edge.yaml:2:10: limits.header_bytes: expected a size like",
        ),
        (
            "listen: [{address: localhost}]",
            "edge.yaml:2:11: listen[0].address: expected an IP address and a port",
        ),
        (
            "listen: [{tls: null}]",
            "edge.yaml:2:10: listen[0]: the key `address` is missing",
        ),
        (
            "listen: {address: x}",
            "edge.yaml:2:1: listen: expected a list, found map",
        ),
        (
            "trusted_proxies: [10.0.0.1]",
            "edge.yaml:2:19: trusted_proxies[0]: expected a network like 10.0.0.0/8",
        ),
        (
            "trusted_proxies: [5]",
            "edge.yaml:2:19: trusted_proxies[0]: expected",
        ),
        (
            "upstreams: {}",
            "edge.yaml:2:1: the key `upstreams` stands here twice",
        ),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}

#[test]
fn values_out_of_bounds_are_refused_all_at_once() {
    for (text, expected) in [
        (
            "limits: {header_bytes: 2MiB}",
            "limits.header_bytes: must be from",
        ),
        (
            "limits: {connections: 0}",
            "limits.connections: must be from 1 to",
        ),
        (
            "limits: {header_read: 0}",
            "limits.header_read: must be more than 0s",
        ),
        (
            "limits: {body: {other: 0}}",
            "limits.body.other: must be more than 0",
        ),
        ("cache: {ttl_seconds: 0}", "cache.ttl_seconds: must be from 1 to"),
        (
            "cache: {classes: {run: {ttl: 400d}}}",
            "cache.classes.run.ttl: 400d is more than a year",
        ),
        (
            "cache: {local: {max_bytes: 1MiB}}",
            "cache.local.max_bytes: 1MiB is less than one entry may have",
        ),
        (
            "log: {level: 'a=b=c'}",
            "log.level: `a=b=c` is not a level or filter",
        ),
        ("listen: []", "listen: at least one address"),
        (
            "listen: [{address: '127.0.0.1:9901'}]",
            "admin.address: 127.0.0.1:9901 is already",
        ),
        (
            "routes: [{prefix: v1, upstream: api}]",
            "routes[0].prefix: `v1` is not a path",
        ),
        (
            "routes: [{prefix: '/a?b', upstream: api}]",
            "routes[0].prefix: `/a?b` is not a path",
        ),
        (
            "routes: [{prefix: /, upstream: web}]",
            "routes[0].upstream: there is no upstream `web`; there are: api",
        ),
        (
            "routes: [{prefix: /, upstream: api}, {prefix: /, upstream: api}]",
            "routes[1].prefix: `/` stands here twice",
        ),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
    let two = refusal("limits: {connections: 0}\ndrain_timeout: 366d\n");
    assert_eq!(two.lines().count(), 2, "{two}");
    assert!(
        two.contains("edge.yaml:2:10: limits") && two.contains("edge.yaml:3:1: drain_timeout"),
        "{two}"
    );
}

#[test]
fn replicas_are_urls_of_servers_and_unique() {
    let refuse = |urls: &str| load_text(&format!("upstreams: {{api: {{replicas: [{urls}]}}}}")).unwrap_err();
    for (url, why) in [
        ("127.0.0.1:5001", "must begin with http"),
        ("ftp://h", "must begin with http"),
        ("http://", "not a URL"),
        ("http://h/path", "must end after host and port"),
        ("http://h?x=1", "must end after host and port"),
        ("http://h:0", "port 0"),
        ("http://h:99999", "not"),
        ("http://h:", "the port is not a number"),
        ("http://u:hunter2@h", "user and password"),
        ("http:// h", "not a URL"),
    ] {
        let message = refuse(&format!("{{url: '{url}'}}"));
        assert!(
            message.starts_with("edge.yaml:1:31: upstreams.api.replicas[0].url: ") && message.contains(why),
            "{url}: {message}"
        );
        assert!(!message.contains("hunter2"), "{message}");
    }
    assert!(
        refuse("{url: 'http://h'}, {url: 'http://H:80/'}").contains("replicas[1].url: http://H:80/ stands")
    );
    assert!(refuse("").contains("upstreams.api.replicas: at least one replica"));
    assert!(
        load_text(
            "upstreams: {a: {replicas: [{url: 'http://h'}]}, b: {replicas: [{url: 'https://[::1]:1/'}]}}"
        )
        .unwrap_err()
        .contains("edge.yaml: routes: needed")
    );
}

#[test]
fn every_key_without_effect_is_named_and_nothing_else() {
    assert!(load_text(ONE_UPSTREAM).unwrap().warnings().is_empty());
    let sketch = include_str!("../../../tests/fixtures/config-sketch.yaml");
    let warnings = load_text(sketch).unwrap().warnings();
    let keys: Vec<_> = warnings.iter().filter_map(|w| w.split(": ").nth(1)).collect();
    assert_eq!(
        keys,
        [
            "cache.answers",
            "upstreams.api",
            "listen[1].tls.cert",
            "listen[1].tls.key"
        ]
    );
}

#[test]
fn what_is_printed_loads_to_the_same_and_says_where_each_value_is_from() {
    let sketch = include_str!("../../../tests/fixtures/config-sketch.yaml");
    let environment = [("DIFY_EDGE__CACHE__TTL_SECONDS", "600")];
    let flags = Flags {
        admin: Some("127.0.0.1:1".into()),
        ..Flags::default()
    };
    let loaded = load_with(sketch, &environment, &flags).unwrap();
    let printed = loaded.print();
    assert_eq!(load_text(&printed).unwrap().config, loaded.config);
    let line = |key: &str| {
        let found = printed.lines().find(|line| line.trim_start().starts_with(key));
        found.unwrap_or_default().to_owned()
    };
    assert!(line("ttl_seconds:").ends_with("600  # environment DIFY_EDGE__CACHE__TTL_SECONDS"));
    assert!(line("address: \"127.0.0.1:1\"").ends_with("# flag --admin"));
    assert!(line("enable_local:").ends_with("edge.yaml:43"));
    assert!(line("header_count:").ends_with("100  # default"));
    for line in printed.lines() {
        assert!(line.contains("  # ") || line.ends_with(':'), "{line}");
    }
}

#[test]
fn passwords_are_not_printed() {
    let text = format!(
        "{ONE_UPSTREAM}cache: {{redis: {{url: 'redis://u:hunter2@h:1/0'}}, answers: {{token: hunter2}}}}"
    );
    let printed = load_text(&text).unwrap().print();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("url: \"redis://u:***@h:1/0\"  # "), "{printed}");
    assert_eq!(printed.matches("password not shown").count(), 2);
    assert!(load_text(&printed).is_ok());
}

#[test]
fn an_administrative_token_is_text_of_some_length_and_is_never_shown() {
    for (text, expected) in [
        (
            "admin: {token: hunter2}",
            "edge.yaml:2:9: admin.token: a token has from 16 to 1024 characters",
        ),
        ("admin: {token: '***'}", "admin.token: a token has from 16"),
        (
            "admin: {token: hunter2 hunter2 hunter2}",
            "admin.token: a token has ASCII letters",
        ),
        (
            "admin: {token: 72697269726972697269}",
            "admin.token: expected a string; write it in quotes",
        ),
        (
            "admin: {token: [hunter2]}",
            "admin.token: expected a string; write it in quotes",
        ),
        (
            "admin: {token: hunter2hunter2hunter2, token_file: /t}",
            "admin.token_file: only one of `token` and `token_file` can be set",
        ),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{text}: {message}");
        assert!(
            !message.contains("hunter2") && !message.contains("7269"),
            "{message}"
        );
    }
    // In the environment there are no kinds: what looks like a number is a token, too.
    for (written, token) in [
        ("hunter2hunter2hunter2", "hunter2hunter2hunter2"),
        ("'hunter2hunter2hunter2'", "hunter2hunter2hunter2"),
        ("12345678901234567890e5", "12345678901234567890e5"),
        ("*{[hunter2hunter2", "*{[hunter2hunter2"),
    ] {
        let loaded = load_with(
            ONE_UPSTREAM,
            &[("DIFY_EDGE__ADMIN__TOKEN", written)],
            &Flags::default(),
        );
        let loaded = loaded.unwrap();
        assert_eq!(loaded.config.admin.token.as_ref().unwrap().0, token);
        let shown = [
            loaded.print(),
            loaded.config.redacted().to_string(),
            format!("{:?}", loaded.config),
        ];
        for text in shown {
            assert!(!text.contains(token), "{text}");
        }
    }
    let file = load_text(&format!("{ONE_UPSTREAM}admin: {{token_file: /nowhere/token}}")).unwrap();
    assert!(file.print().contains("token_file: /nowhere/token  # "));
    let warnings = file.warnings().join("\n");
    assert!(
        warnings.contains("admin.token_file: cannot read /nowhere/token: "),
        "{warnings}"
    );
}

#[test]
fn an_administrative_listener_that_others_can_reach_is_a_warning() {
    let warnings = |admin: &str| {
        let loaded = load_text(&format!("{ONE_UPSTREAM}admin: {{{admin}}}")).unwrap();
        loaded.warnings().join("\n")
    };
    for inside in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(warnings(&format!("address: '{inside}'")), "", "{inside}");
    }
    for outside in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
        let without = warnings(&format!("address: '{outside}'"));
        assert!(without.contains("edge.yaml:2:9: admin.address: "), "{without}");
        assert!(
            without.contains("may read /config") && without.contains("writes are refused"),
            "{without}"
        );
        let with = warnings(&format!("address: '{outside}', token: hunter2hunter2hunter2"));
        assert!(with.contains("writes need the token"), "{with}");
    }
}

#[test]
fn names_and_values_of_variables_that_make_no_sense_are_refused() {
    let refuse =
        |name: &str, value: &str| load_with(ONE_UPSTREAM, &[(name, value)], &Flags::default()).unwrap_err();
    assert!(refuse("DIFY_EDGE__", "x").contains("the name is not"));
    assert!(refuse("DIFY_EDGE__CACHE____TTL", "x").contains("the name is not"));
    assert!(refuse(&"DIFY_EDGE__A".repeat(4000), "x").contains("the name is not"));
    assert!(refuse("DIFY_EDGE__LISTEN", "[{").starts_with("environment DIFY_EDGE__LISTEN: "));
    assert!(refuse("DIFY_EDGE__LOG__LEVEL__X", "5").contains("log.level: expected a string, found map"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let sources = |path: &std::path::Path| Sources {
        file: Some(path.to_owned()),
        ..Sources::default()
    };
    let directory = TempDir::new();
    let missing = load(&sources(&directory.0.join("none.yaml")))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("none.yaml: cannot be read: "), "{missing}");
    let binary = directory.0.join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    assert!(
        load(&sources(&binary))
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
    assert!(load_text("[1, 2]").unwrap_err().contains("is a map of keys"));
    assert_eq!(
        load_text(&format!("{ONE_UPSTREAM}drain_timeout: 1s"))
            .unwrap()
            .config
            .drain_timeout
            .0,
        Duration::from_secs(1)
    );
}

proptest! {
    #[test]
    fn any_text_in_a_free_section_survives_printing(key in "\\PC{0,12}", text in "(\\PC|[\\t\\n\\r\u{85}\u{2028}\u{feff}\0]){0,24}") {
        let mut config = load_text(ONE_UPSTREAM).unwrap().config;
        config.cache.answers =
            Some(json!({ "k": { "x": text.as_str() }, key: [text.as_str(), { "y": text.as_str() }] }));
        prop_assume!(config.redacted() == serde_json::to_value(&config).unwrap());
        let nothing = Node::from_value(json!({}), &Origin::Default);
        let printed = print::print(&config, &nothing);
        prop_assert_eq!(load_text(&printed).map(|loaded| loaded.config), Ok(config), "{}", printed);
    }
}

#[test]
fn the_origin_of_a_key_is_the_place_where_its_value_was_written() {
    let text = format!("{ONE_UPSTREAM}cache:\n  classes: {{listing: {{ttl: 9s}}}}\n");
    let environment = [("DIFY_EDGE__CACHE__TTL_SECONDS", "60")];
    let loaded = load_with(&text, &environment, &Flags::default()).unwrap();
    assert!(
        loaded
            .origin_of("cache.classes.listing.ttl")
            .ends_with("edge.yaml:3")
    );
    assert_eq!(
        loaded.origin_of("cache.ttl_seconds"),
        "environment DIFY_EDGE__CACHE__TTL_SECONDS"
    );
    assert_eq!(loaded.origin_of("cache.classes.run.ttl"), "default");
    assert_eq!(loaded.origin_of("no.such.key"), "default");
}

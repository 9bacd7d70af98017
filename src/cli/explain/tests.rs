//! Each section of an explanation, what arguments become, and that no credential is repeated.

use std::time::Duration;

use clap::Parser as _;
use proptest::prelude::*;

use super::*;
use crate::config::guard::{PostgresConfig, SourceConfig};
use crate::config::{GuardConfig, GuardMode, ReplicaConfig, UpstreamConfig};
use crate::types::known::KnownId;
use crate::types::units::Size;

fn config() -> Config {
    let replica = |url: &str| ReplicaConfig {
        url: url.into(),
        ..ReplicaConfig::default()
    };
    let api = UpstreamConfig {
        replicas: vec![replica("http://one:5001")],
        standby: vec![replica("http://two:5001")],
        ..UpstreamConfig::default()
    };
    Config {
        upstreams: [("api".into(), api)].into(),
        ..Config::default()
    }
}

/// `METHOD /target` with these fields and a Host.
fn ask(line: &str, fields: &[(&str, &str)], body: &'static str) -> Question {
    let (method, target) = line.split_once(' ').unwrap();
    let mut fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    fields.push(("Host".into(), b"dify.test".to_vec()));
    if !body.is_empty() {
        fields.push(("Content-Length".into(), body.len().to_string().into_bytes()));
    }
    Question {
        method: method.into(),
        target: target.into(),
        fields,
        body: body.into(),
        ..Question::default()
    }
}

fn explain_with(config: &Config, question: &Question) -> Explanation {
    let explainer = Explainer::new(config, |key| format!("from {key}")).unwrap();
    explainer.explain(question, Clock::System.now()).unwrap()
}

fn explain(line: &str, fields: &[(&str, &str)], body: &'static str) -> Explanation {
    explain_with(&config(), &ask(line, fields, body))
}

const KEY: (&str, &str) = ("Authorization", "Bearer app-secret");

#[test]
fn the_route_has_its_upstream_limits_and_time_outs() {
    let route = explain("POST /v1/chat-messages", &[KEY], "{}").route.unwrap();
    assert_eq!(
        (route.upstream.as_str(), route.template),
        ("api", "/v1/chat-messages")
    );
    assert_eq!(route.replicas, ["http://one:5001", "http://two:5001"]);
    assert_eq!(
        (route.class, route.lane, route.in_table),
        ("generation", "generation", true)
    );
    assert_eq!(
        (route.total_timeout_ms, route.idle_timeout_ms),
        (None, Some(300_000))
    );
    assert_eq!(route.body_limit.key, "limits.body.generation");
    assert_eq!(route.body_limit.from, "from limits.body.generation");
    let unknown = explain("GET /nothing", &[], "").route.unwrap();
    assert_eq!(
        (unknown.template, unknown.in_table, unknown.class),
        ("*", false, "passthrough")
    );
}

#[test]
fn an_upload_has_more_time_the_longer_it_says_it_is() {
    let upload = |fields: &[(&str, &str)], body| {
        let route = explain("POST /v1/files/upload", fields, body).route.unwrap();
        (route.class, route.total_timeout_ms.is_some())
    };
    assert_eq!(upload(&[KEY], "x"), ("upload", true));
    assert_eq!(
        upload(&[KEY, ("transfer-encoding", "chunked")], ""),
        ("upload", false)
    );
}

#[test]
fn a_principal_is_told_by_names_and_a_missing_one_by_its_reason() {
    let fields = [
        ("Cookie", "passport-x=p; alone; access_token=t"),
        ("X-App-Code", "c"),
    ];
    let caller = explain("GET /api/site", &fields, "").principal.unwrap();
    assert_eq!(caller.made_of, ["cookie", "x-app-code"]);
    assert_eq!(caller.cookies, ["passport-x", "(without a name)", "access_token"]);
    assert_eq!(caller.digest.unwrap().len(), 32);
    let nobody = explain("GET /v1/info", &[], "").principal.unwrap();
    assert_eq!(nobody.digest, None);
    assert!(nobody.why_none.unwrap().contains("Authorization"));
    let everybody = explain("GET /api/system-features", &[], "").principal.unwrap();
    assert!(everybody.public && everybody.made_of.is_empty());
}

#[test]
fn the_plan_says_what_the_cache_does_and_why() {
    let plan = |line: &str, fields: &[(&str, &str)]| explain(line, fields, "").cache.unwrap();
    let look_up = plan("GET /v1/info", &[KEY]);
    assert_eq!(
        (look_up.plan, look_up.kept_as, look_up.forward, look_up.detail),
        ("look_up", "metadata", "uri-miss", "metadata")
    );
    assert!(look_up.key.is_some() && look_up.directives.is_empty());
    let head = plan("HEAD /v1/info", &[KEY]);
    assert_eq!((head.plan, head.detail), ("look_up", "head"));
    assert_eq!(head.key, look_up.key, "HEAD is answered by what GET stored");
    let asking = plan(
        "GET /v1/info",
        &[
            KEY,
            ("Cache-Control", "no-cache, max-age=7"),
            ("If-None-Match", "*"),
        ],
    );
    assert_eq!(asking.forward, "request");
    for word in ["no-cache", "max-age=7", "condition"] {
        assert!(asking.directives.iter().any(|said| said.contains(word)), "{word}");
    }
    for (line, fields, forward, why) in [
        ("GET /v1/info", &[][..], "bypass", "whose answer"),
        (
            "GET /v1/info",
            &[KEY, ("Cache-Control", "no-store")][..],
            "request",
            "no-store",
        ),
        ("GET /api/login/status", &[KEY][..], "bypass", "never kept"),
        ("OPTIONS /v1/info", &[KEY][..], "method", "GET and HEAD"),
    ] {
        let pass = plan(line, fields);
        assert_eq!((pass.plan, pass.forward), ("pass", forward), "{line}");
        assert!(
            pass.why.contains(why) && pass.key.is_none(),
            "{line}: {}",
            pass.why
        );
    }
    assert_eq!(plan("POST /v1/chat-messages", &[KEY]).plan, "write");
    assert!(plan("POST /v1/no-such-thing", &[KEY]).why.contains("no handler"));
    let mut off = config();
    off.cache.enable_local = false;
    let pass = explain_with(&off, &ask("GET /v1/info", &[KEY], ""))
        .cache
        .unwrap();
    assert!(pass.why.contains("enable_local"), "{}", pass.why);
}

/// The digest of the parts that are shown, by the rule that `cache::key` states.
fn digest_of(key: &KeyParts) -> String {
    let mut hash = blake3::Hasher::new();
    let mut part = |bytes: Option<&[u8]>| {
        hash.update(&bytes.map_or(0, |bytes| bytes.len() as u64 + 1).to_le_bytes());
        hash.update(bytes.unwrap_or_default());
    };
    let principal = crate::types::ids::from_hex(&key.principal).unwrap();
    part(Some(key.scheme.as_bytes()));
    key.host.iter().for_each(|host| part(Some(host.as_bytes())));
    part(None);
    part(Some(key.path.as_bytes()));
    part(key.query.as_deref().map(str::as_bytes));
    part(Some(&principal));
    for values in [&key.origin, &key.accept_encoding] {
        values.iter().for_each(|value| part(Some(value.as_bytes())));
        part(None);
    }
    for (name, value) in &key.forwarding {
        part(Some(name.as_bytes()));
        part(Some(value.as_bytes()));
        part(None);
    }
    crate::types::ids::hex(&hash.finalize().as_bytes()[..16])
}

#[test]
fn the_parts_of_a_key_are_all_that_it_is_made_of() {
    let fields = [
        KEY,
        ("Origin", "http://o"),
        ("Accept-Encoding", "gzip"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("User-Agent", "x"),
    ];
    let mut question = ask("GET /v1/conversations?user=a&limit=2", &fields, "");
    for (tls, trusted) in [(false, false), (true, true)] {
        (question.tls, question.trusted) = (tls, trusted);
        let key = explain_with(&config(), &question).cache.unwrap().key.unwrap();
        assert_eq!(key.digest, digest_of(&key));
        assert_eq!(key.digest[..8], key.prefix);
        assert_eq!(key.query.as_deref(), Some("limit=2&user=a"));
        assert_eq!(key.forwarding.len(), usize::from(trusted));
    }
    let bare = explain("GET /v1/info", &[KEY], "").cache.unwrap().key.unwrap();
    assert_eq!(bare.digest, digest_of(&bare));
    assert_eq!((bare.query, bare.origin), (None, vec![]));
}

#[test]
fn a_lifetime_names_its_keys_and_what_in_an_answer_changes_it() {
    let mut config = config();
    config.cache.ttl_seconds = 90;
    let lifetime = |line: &str| explain_with(&config, &ask(line, &[KEY], "")).lifetime.unwrap();
    let info = lifetime("GET /v1/info");
    let times = |status: u16| {
        info.kept
            .iter()
            .find(|kept| kept.status == status)
            .map(|kept| kept.times)
    };
    let of = |fresh, revalidate, error| Times {
        fresh_ms: fresh,
        stale_while_revalidate_ms: revalidate,
        stale_if_error_ms: error,
    };
    assert_eq!(times(200), Some(of(60_000, 30_000, 30_000)), "cut by the ceiling");
    assert_eq!(times(404), Some(of(5_000, 0, 0)));
    assert_eq!(info.kept.len(), 2);
    let setting = |key: &str| info.settings.iter().find(|setting| setting.key == key).unwrap();
    assert_eq!(setting("cache.classes.metadata.ttl").value, "1m");
    assert_eq!(setting("cache.ttl_seconds").from, "from cache.ttl_seconds");
    let effect = |lifetime: &Lifetime, has: &str| {
        let found = lifetime.answers.iter().find(|effect| effect.has.contains(has));
        found.unwrap_or_else(|| panic!("{has}")).clone()
    };
    assert_eq!(effect(&info, "Set-Cookie").not_kept, Some("set-cookie"));
    assert_eq!(effect(&info, "max-age=1").times.unwrap().fresh_ms, 1_000);
    assert_eq!(effect(&info, "must-revalidate").times, Some(of(60_000, 0, 0)));
    let run = lifetime("GET /v1/workflows/run/86fedc0e-02f5-48d7-b816-2eacbb40ae5a");
    assert_eq!(effect(&run, "not ended").not_kept, Some("run-not-ended"));
    assert_eq!(effect(&run, "signed").times.unwrap().fresh_ms, 60_000);
    assert_eq!(run.kept.len(), 1);
    let unknown = lifetime("GET /e/some.css");
    assert_eq!(
        effect(&unknown, "no max-age").not_kept,
        Some("no-explicit-freshness")
    );
    assert_eq!(
        effect(&unknown, "Vary: Cookie").not_kept,
        None,
        "the whole cookie is in the key"
    );
    assert_eq!(unknown.kept[0].times.fresh_ms, 90_000);
    assert!(explain("POST /v1/chat-messages", &[KEY], "{}").lifetime.is_none());
}

const DATASET: &str = "GET /v1/datasets/5F0E7A3C-0000-4000-8000-000000000001";

fn guarded(mode: GuardMode, line: &str, fields: &[(&str, &str)]) -> Guard {
    let mut config = config();
    config.guard = Some(GuardConfig {
        mode,
        ..GuardConfig::default()
    });
    explain_with(&config, &ask(line, fields, "")).guard.unwrap()
}

#[test]
fn what_a_guard_would_check_is_told_also_while_it_is_off() {
    let off = explain(DATASET, &[KEY], "").guard.unwrap();
    assert_eq!((off.mode, off.from.as_str()), ("off", "from guard.mode"));
    let shown: Vec<_> = off
        .asks
        .iter()
        .map(|thing| (thing.kind, thing.at.as_str(), thing.id.as_str(), thing.found))
        .collect();
    let digest = KnownId::of_text(b"app-secret");
    let digest = &crate::types::ids::hex(&digest.0)[..8];
    assert_eq!(
        shown,
        [
            (
                "dataset",
                "segment dataset_id",
                "5f0e7a3c-0000-4000-8000-000000000001",
                "unknown"
            ),
            ("dataset_key", "field Authorization", digest, "unknown"),
        ]
    );
    let words = |place: usize| off.asks[place].if_missing.as_ref().unwrap();
    assert_eq!((words(0).status, words(1).status), (404, 401));
    assert!(words(0).body.contains("Dataset not found."));
    assert_eq!((off.verdict, off.answer.is_none()), ("passes", true));
    let path = "/v1/datasets/5f0e7a3c-0000-4000-8000-000000000001/documents/metadata";
    let unrecorded = explain(&format!("POST {path}"), &[KEY], "{}").guard.unwrap();
    assert_eq!(unrecorded.asks[0].if_missing, None);
    let code = explain("GET /api/passport", &[("X-App-Code", "secret")], "")
        .guard
        .unwrap();
    assert_eq!(code.asks[0].at, "field X-App-Code");
}

#[test]
fn without_a_database_what_is_unknown_counts_and_nothing_is_refused() {
    let enforce = guarded(GuardMode::Enforce, DATASET, &[KEY]);
    assert_eq!((enforce.verdict, enforce.answer), ("passes_budgeted", None));
    assert!(
        enforce.why.contains("guard.unknown_per_minute (600)"),
        "{}",
        enforce.why
    );
    assert!(
        enforce.conditions[0].contains("guard.not_found.ttl (5s)"),
        "{:?}",
        enforce.conditions
    );
    assert_eq!(guarded(GuardMode::Observe, DATASET, &[KEY]).verdict, "passes");
    let nothing = guarded(GuardMode::Enforce, "GET /health", &[]);
    assert_eq!((nothing.verdict, nothing.asks.len()), ("passes", 0));
}

#[test]
fn a_path_that_no_route_has_for_want_of_a_uuid_is_told_with_the_routers_words() {
    let mut config = config();
    config.guard = Some(GuardConfig {
        mode: GuardMode::Enforce,
        ..GuardConfig::default()
    });
    let question = ask("GET /v1/datasets/not-a-uuid", &[KEY], "");
    let learned = explain_with(&config, &question).guard.unwrap();
    assert_eq!((learned.verdict, learned.answer), ("passes", None));
    let guard = config.guard.as_mut().unwrap();
    guard.sources = vec![SourceConfig::Postgres(PostgresConfig::default())];
    guard.database_url = Some("postgres://u@127.0.0.1:1/dify".into());
    let explanation = explain_with(&config, &question);
    let page = text::text(&explanation);
    assert!(
        page.contains("answered 404 <!doctype html> <html lang=en>"),
        "{page}"
    );
    let told = explanation.guard.unwrap();
    let answer = told.answer.unwrap();
    assert_eq!((told.verdict, answer.status), ("refused", 404));
    assert!(answer.body.starts_with("<!doctype html>"), "{}", answer.body);
    assert!(told.why.contains("id of the dataset"), "{}", told.why);
    let said = told.conditions.join("; ");
    for words in ["kind dataset", "of version 1.12.1", "does not compress"] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_database_that_cannot_be_asked_is_said_so_and_the_rest_goes_on() {
    let mut config = config();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (url, word) in [
        (
            format!("postgres://u:hidden@{closed}/dify"),
            "no answer from the database",
        ),
        ("mysql://u:hidden@h/dify".to_owned(), "not a URL"),
    ] {
        config.guard = Some(GuardConfig {
            mode: GuardMode::Enforce,
            sources: vec![SourceConfig::Postgres(PostgresConfig::default())],
            database_url: Some(url),
            ..GuardConfig::default()
        });
        let told = explain_with(&config, &ask(DATASET, &[KEY], ""));
        let guard = told.guard.clone().unwrap();
        for thing in &guard.asks {
            assert!(thing.why.as_ref().unwrap().contains(word), "{thing:?}");
        }
        assert_eq!(guard.verdict, "passes_budgeted");
        assert!(told.cache.is_some());
        let page = text::text(&told);
        assert!(page.contains(word) && !page.contains("hidden"), "{page}");
    }
}

#[test]
fn tags_stand_by_name_with_the_routes_that_a_write_ends() {
    let tags = |line: &str, body| explain(line, &[KEY], body).tags.unwrap();
    let read = tags("GET /v1/conversations?user=abc", "");
    assert_eq!(read.filled, ["conversations", "conversations:abc", "access"]);
    assert_eq!(read.purgeable_by[0], "route:/v1/conversations");
    assert!(read.invalidated.is_empty() && read.ends_routes.is_empty());
    let write = tags("POST /v1/chat-messages", r#"{"user":"abc"}"#);
    assert_eq!(
        write.invalidated,
        ["conversations:abc", "target:/v1/chat-messages"]
    );
    assert!(write.ends_routes.contains(&"/v1/messages") && write.filled.is_empty());
    let everybody = tags("POST /v1/chat-messages", "{}");
    assert_eq!(everybody.invalidated[0], "conversations");
}

#[test]
fn what_the_stages_refuse_is_explained_and_what_the_wire_refuses_is_an_error() {
    let mut config = config();
    config.limits.body.other = Size(3);
    let id = "86fedc0e-02f5-48d7-b816-2eacbb40ae5a";
    let question = ask(&format!("POST /v1/messages/{id}/feedbacks"), &[KEY], "1234");
    let long = explain_with(&config, &question);
    let refused = long.refused.clone().unwrap();
    assert_eq!((refused.status, refused.class), (413, Some("write")));
    assert!(refused.why.contains("limits.body.other") && long.route.is_none());
    assert!(text::text(&long).contains("413"));
    let explainer = Explainer::new(&config, |_| String::new()).unwrap();
    let mut short = ask("POST /v1/chat-messages", &[("content-length", "9")], "");
    assert!(explainer.explain(&short, Clock::System.now()).is_err());
    short.method = "TRACE".into();
    let refused = explainer.explain(&short, Clock::System.now()).unwrap_err();
    assert_eq!(wire::respond::status(refused.kind), 501);
}

#[test]
fn the_text_has_every_section_and_no_credential() {
    let fields = [
        KEY,
        ("Cookie", "passport-x=hidden; secretive"),
        ("X-App-Passport", "hidden"),
    ];
    for line in [
        "GET /api/site",
        "GET /v1/info",
        "POST /v1/chat-messages",
        "GET /console/api/apps",
        "GET /?x=1",
    ] {
        let explanation = explain(line, &fields, "");
        let page = text::text(&explanation);
        let json = serde_json::to_string(&explanation).unwrap();
        for secret in ["secret", "hidden"] {
            assert!(
                !page.contains(secret) && !json.contains(secret),
                "{line}: {secret}"
            );
        }
        for section in ["request", "route", "principal", "guard", "cache", "tags"] {
            assert!(page.lines().any(|found| found == section), "{line}: {section}");
        }
    }
    let page = text::text(&explain("GET /v1/info", &[KEY], ""));
    for said in [
        "look-up",
        "1m (from cache.classes.metadata.ttl)",
        "accept-encoding absent",
        "not kept (set-cookie)",
    ] {
        assert!(page.contains(said), "{said}:\n{page}");
    }
    let all = text::text(&explain("DELETE /v1/no-such-thing", &[KEY], ""));
    assert!(all.contains("--json has them all"), "{all}");
}

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: ExplainArgs,
}

fn asked(arguments: &[&str]) -> Result<Question, String> {
    let all = ["explain"].iter().chain(arguments);
    question(&Command::try_parse_from(all).unwrap().args, &config())
}

#[test]
fn arguments_become_a_request() {
    let full = asked(&["GET", "https://a:8443/x?y=1", "-H", "A: b:c", "--trusted"]).unwrap();
    assert_eq!(
        (full.tls, full.trusted, full.target.as_str()),
        (true, true, "/x?y=1")
    );
    assert_eq!(full.fields[0], ("host".into(), b"a:8443".to_vec()));
    assert_eq!(full.fields[1], ("A".into(), b"b:c".to_vec()));
    let bare = asked(&["POST", "/x", "--body", "ab"]).unwrap();
    assert_eq!(bare.fields[0].1, b"127.0.0.1:8080");
    assert_eq!(bare.fields[1], ("content-length".into(), b"2".to_vec()));
    let named = asked(&["GET", "http://a?q", "-H", "Host: b"]).unwrap();
    assert_eq!((named.target.as_str(), named.fields.len()), ("/?q", 1));
}

#[test]
fn a_wrong_argument_is_named_without_what_may_be_secret_in_it() {
    for (arguments, word) in [
        (&["GET", "ftp://x"][..], "ftp://x"),
        (&["GET", "http://"][..], "names no host"),
        (&["GET", "http://me:secret@a/"][..], "password"),
        (
            &["GET", "/", "-H", "A: b", "-H", "Authorization Bearer secret"][..],
            "header 2",
        ),
        (
            &["GET", "/", "-H", "Authorization Bearer secret: x"][..],
            "header 1",
        ),
        (&["GET", "/", "--body", "@/no/such/file"][..], "/no/such/file"),
    ] {
        let error = asked(arguments).unwrap_err();
        assert!(error.contains(word) && !error.contains("secret"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_url_and_header_is_read_or_refused(url_text in ".{0,24}", line in ".{0,24}") {
        let _ = url(&url_text);
        let _ = url(&format!("http://{url_text}"));
        let _ = field(&line);
    }

    #[test]
    fn any_request_is_explained_or_refused(path in "/[!-~]{0,24}", value in "[ -~]{0,24}", seconds in 0u64..100) {
        let mut config = config();
        config.cache.classes.metadata.ttl.0 = Duration::from_secs(seconds);
        let explainer = Explainer::new(&config, |_| String::new()).unwrap();
        let question = ask(&format!("GET {path}"), &[("cookie", &value), ("cache-control", &value)], "");
        if let Ok(explanation) = explainer.explain(&question, Clock::System.now()) {
            let _ = text::text(&explanation);
        }
    }
}

//! What the origin gets to see of a request's fields, and the client of an answer's.

use crate::support::client::get;
use crate::support::edge::{self, Running};
use crate::support::origin::{Origin, answer, json};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

async fn telling() -> (Origin, Running) {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    (origin, edge)
}

#[tokio::test]
async fn a_name_with_an_underscore_does_not_reach_an_origin_that_takes_it_for_another() {
    let (origin, edge) = telling().await;
    edge.ask(get(
        "/v1/info",
        &[KEY, ("X_App_Code", "forged"), ("X_Forwarded_For", "10.0.0.1")],
    ))
    .await;
    let seen = origin.seen().pop().expect("a request");
    assert!(
        seen.fields.iter().all(|(name, _)| !name.contains('_')),
        "{:?}",
        seen.fields
    );
}

#[tokio::test]
async fn fields_that_dify_trusts_are_not_taken_from_anyone() {
    let (origin, edge) = telling().await;
    let forged = [
        ("CF-Connecting-IP", "10.9.9.9"),
        ("X-Forwarded-For", "10.9.9.9"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=10.9.9.9"),
    ];
    let mut fields = vec![KEY];
    fields.extend(forged);
    edge.ask(get("/v1/info", &fields)).await;
    let seen = origin.seen().pop().expect("a request");
    let text = format!("{:?}", seen.fields);
    assert!(
        !text.contains("10.9.9.9") && !text.contains("evil.example"),
        "{text}"
    );
    assert_eq!(seen.field("cf-connecting-ip"), None);
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some("dify.test"));
}

#[tokio::test]
async fn connection_cannot_name_away_the_fields_that_say_who_asks() {
    let (origin, edge) = telling().await;
    let named = "close, Authorization, Host, Cookie, X-Forwarded-For, X-Drop";
    let fields = [
        KEY,
        ("Cookie", "a=b"),
        ("X-Drop", "1"),
        ("X-Keep", "2"),
        ("Connection", named),
    ];
    let answer = edge.ask(get("/v1/info", &fields)).await;
    assert_eq!(answer.status, 200);
    let seen = origin.seen().pop().expect("a request");
    assert_eq!(seen.field("authorization"), Some(KEY.1));
    assert_eq!(
        (seen.field("host"), seen.field("cookie")),
        (Some("dify.test"), Some("a=b"))
    );
    assert_eq!((seen.field("x-keep"), seen.field("x-drop")), (Some("2"), None));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_about_the_client_before_it() {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |config| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await;
    let told = [
        KEY,
        ("X-Forwarded-For", "10.9.9.9"),
        ("X-Forwarded-Host", "shown.example"),
        ("X-Forwarded-Proto", "https"),
    ];
    edge.ask(get("/v1/info", &told)).await;
    let seen = origin.seen().pop().expect("a request");
    assert_eq!(seen.field("x-forwarded-for"), Some("10.9.9.9, 127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("x-forwarded-host"), Some("shown.example"));
}

#[tokio::test]
async fn the_trace_of_a_request_goes_on_with_it() {
    let (origin, edge) = telling().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    edge.ask(get(
        "/v1/info",
        &[KEY, ("traceparent", trace), ("tracestate", "a=b")],
    ))
    .await;
    let seen = origin.seen().pop().expect("a request");
    assert_eq!(
        (seen.field("traceparent"), seen.field("tracestate")),
        (Some(trace), Some("a=b"))
    );
}

#[tokio::test]
async fn what_is_between_origin_and_proxy_alone_does_not_reach_the_client_not_from_memory_either() {
    let origin = Origin::start(|_| async {
        let own = [
            ("Connection", "keep-alive, X-Private"),
            ("X-Private", "1"),
            ("Keep-Alive", "timeout=2"),
            ("Proxy-Authenticate", "Basic"),
            ("Proxy-Authentication-Info", "x"),
            ("X-Public", "2"),
        ];
        answer(200, &own, "{}")
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    for hit in [false, true] {
        let answer = edge.ask(get("/v1/info", &[KEY])).await;
        assert_eq!((answer.is_hit(), answer.field("x-public")), (hit, Some("2")));
        for name in [
            "x-private",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authentication-info",
        ] {
            assert_eq!(answer.field(name), None, "{name}, hit {hit}");
        }
    }
}

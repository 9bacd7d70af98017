//! Each limit is answered with a 4xx that says what was too much, in the shape in which Dify writes its errors.

use std::time::Duration;

use dify_edge::config::Config;
use dify_edge::types::units::{Size, Span};

use crate::support::client::{Answer, get, post, request};
use crate::support::edge::{self, Running};
use crate::support::origin::{Origin, json};
use crate::support::within;

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

async fn before(change: impl FnOnce(&mut Config)) -> (Origin, Running) {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], change).await;
    (origin, edge)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!((&json["status"], &json["code"]), (&status.into(), &code.into()));
    assert!(
        json["message"].as_str().is_some_and(|message| message.len() > 5),
        "{json}"
    );
}

#[tokio::test]
async fn too_many_fields_or_too_long_ones_are_431() {
    let (origin, edge) = before(|config| {
        config.limits.header_count = 10;
        config.limits.header_bytes = Size::kib(2);
    })
    .await;
    let many: Vec<_> = (0..11).map(|_| ("X-Field", "1")).collect();
    refused(
        &edge.ask(get("/v1/info", &many)).await,
        431,
        "request_header_fields_too_large",
    );
    let long = "x".repeat(3000);
    refused(
        &edge.ask(get("/v1/info", &[("X-Long", &long)])).await,
        431,
        "request_header_fields_too_large",
    );
    assert_eq!(origin.counts().requests, 0);
    let few: Vec<_> = (0..9).map(|_| ("X-Field", "1")).collect();
    assert_eq!(edge.ask(get("/v1/info", &few)).await.status, 200);
}

#[tokio::test]
async fn too_long_a_target_is_414() {
    let (origin, edge) = before(|config| config.limits.uri_bytes = Size(100)).await;
    let target = format!("/v1/info?x={}", "y".repeat(100));
    refused(&edge.ask(get(&target, &[])).await, 414, "request_uri_too_large");
    assert_eq!(origin.counts().requests, 0);
}

#[tokio::test]
async fn too_long_a_body_is_413_with_the_limit_of_its_class() {
    let (origin, edge) = before(|config| {
        let body = &mut config.limits.body;
        body.other = Size(100);
        body.generation = Size(200);
        body.passthrough = Size(300);
        body.upload = Size(400);
    })
    .await;
    for (target, limit) in [
        ("/v1/conversations/5f0e7a3c-0000-4000-8000-00000000000f/name", 100),
        ("/v1/chat-messages", 200),
        ("/unknown", 300),
        ("/v1/files/upload", 400),
    ] {
        let just = request("POST", target, &[KEY], &vec![b' '; limit]);
        assert_eq!(edge.ask(just).await.status, 200, "{target}");
        let before = origin.counts().requests;
        let more = request("POST", target, &[KEY], &vec![b' '; limit + 1]);
        refused(&edge.ask(more).await, 413, "request_entity_too_large");
        let chunks = format!(
            "POST {target} HTTP/1.1\r\nHost: dify.test\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            limit + 1,
            " ".repeat(limit + 1)
        );
        refused(&edge.ask(chunks).await, 413, "request_entity_too_large");
        assert_eq!(origin.counts().requests, before, "{target}");
    }
}

#[tokio::test]
async fn a_body_that_is_announced_as_too_long_is_refused_before_it_is_sent() {
    let (_origin, edge) = before(|config| config.limits.body.generation = Size(100)).await;
    let mut client = edge.client().await;
    client
        .send("POST /v1/chat-messages HTTP/1.1\r\nHost: dify.test\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let answer = client.response("POST").await;
    refused(&answer, 413, "request_entity_too_large");
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_408() {
    let (_origin, edge) = before(|config| config.limits.header_read = Span::millis(100)).await;
    let mut client = edge.client().await;
    client.send("GET /v1/info HTTP/1.1\r\nHost: dify").await;
    refused(&client.response("GET").await, 408, "request_timeout");
    assert!(client.ends_cleanly().await);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_408() {
    let (origin, edge) = before(|config| {
        config.limits.body_rate = Size::kib(1);
        config.limits.body_grace = Span::millis(200);
    })
    .await;
    let mut client = edge.client().await;
    client
        .send("POST /v1/chat-messages HTTP/1.1\r\nHost: dify.test\r\nContent-Length: 1000\r\n\r\n{")
        .await;
    refused(&client.response("POST").await, 408, "request_timeout");
    assert_eq!(origin.counts().requests, 0);
}

#[tokio::test]
async fn a_connection_that_is_idle_too_long_is_closed() {
    let (_origin, edge) = before(|config| config.limits.idle = Span::millis(100)).await;
    let mut client = edge.client().await;
    client.exchange(get("/v1/info", &[KEY])).await;
    assert!(client.ends_cleanly().await);
}

#[tokio::test]
async fn one_connection_too_many_of_a_peer_is_429() {
    let (_origin, edge) = before(|config| config.limits.connections_per_peer = 2).await;
    let mut held = vec![edge.client().await, edge.client().await];
    for client in &mut held {
        assert_eq!(client.exchange(get("/v1/info", &[KEY])).await.status, 200);
    }
    let mut third = edge.client().await;
    let answer = third.response("GET").await;
    refused(&answer, 429, "too_many_requests");
    assert!(answer.field("retry-after").is_some());
    drop(third);
    held.pop();
    crate::support::eventually("the place to be free", || async {
        let mut client = edge.client().await;
        let sent = client.try_send(get("/v1/info", &[KEY])).await;
        let answer = client.response("GET").await;
        (sent.is_ok() && answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_connection_too_many_in_all_waits_until_another_ends() {
    let (_origin, edge) = before(|config| config.limits.connections = 1).await;
    let mut first = edge.client().await;
    assert_eq!(first.exchange(get("/v1/info", &[KEY])).await.status, 200);
    let mut second = edge.client().await;
    second.send(get("/v1/info", &[KEY])).await;
    let early = tokio::time::timeout(Duration::from_millis(200), second.head()).await;
    assert!(early.is_err(), "it was answered beside the first");
    drop(first);
    assert_eq!(second.response("GET").await.status, 200);
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_400_and_never_forwarded() {
    let (origin, edge) = before(|_| {}).await;
    let heads = [
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 3\r\n\r\n{}",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /v1/chat-messages HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nX-Folded: one\r\n two\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nX-Bare: one\rtwo\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nX-Nul: one\0two\r\n\r\n",
        "GET /v1/info HTTP/1.1\r\nHost: a\r\nX Space: 1\r\n\r\n",
        "GET /v1/in\0fo HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET v1/info HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for head in heads {
        let mut client = edge.client().await;
        client.send(head).await;
        let answer = client.response("POST").await;
        refused(&answer, 400, "bad_request");
        assert_eq!(answer.field("connection"), Some("close"), "{head:?}");
        client.ends_cleanly().await;
    }
    assert_eq!(origin.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn a_chunk_that_is_none_ends_the_exchange() {
    let (origin, edge) = before(|_| {}).await;
    for chunk in [
        "zz\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}XX0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "-1\r\n",
    ] {
        let mut client = edge.client().await;
        let head = "POST /v1/chat-messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{chunk}")).await;
        refused(&client.response("POST").await, 400, "bad_request");
    }
    assert_eq!(origin.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn connect_and_trace_are_501() {
    let (_origin, edge) = before(|_| {}).await;
    for head in [
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = edge.client().await;
        client.send(head).await;
        refused(&client.response("GET").await, 501, "not_implemented");
    }
}

#[tokio::test]
async fn a_path_without_upstream_is_404_and_only_if_cached_is_504() {
    let (_origin, edge) = before(|config| {
        config.routes = vec![dify_edge::config::RouteConfig {
            prefix: "/v1".into(),
            upstream: "api".into(),
        }];
    })
    .await;
    refused(&edge.ask(get("/elsewhere", &[])).await, 404, "not_found");
    let only = get("/v1/info", &[KEY, ("Cache-Control", "only-if-cached")]);
    refused(&edge.ask(only).await, 504, "gateway_timeout");
}

#[tokio::test]
async fn when_every_slot_and_every_place_in_the_queue_is_taken_the_answer_is_503() {
    let origin =
        Origin::start(|_| async { vec![crate::support::origin::Action::Wait(std::sync::Arc::default())] })
            .await;
    let edge = edge::start(&[origin.address], |config| {
        edge::api(config).connections.limit = 1;
        edge::api(config).connections.queue = 1;
    })
    .await;
    let chat = || {
        post(
            "/v1/chat-messages",
            &[KEY],
            "{\"query\": \"hi\", \"user\": \"u\"}",
        )
    };
    let mut first = edge.client().await;
    first.send(chat()).await;
    origin
        .until("the first request", |counts| counts.requests == 1)
        .await;
    let mut waiting = edge.client().await;
    waiting.send(chat()).await;
    crate::support::eventually("the second to queue", || async {
        let queued = crate::support::metrics::sum(edge.admin, "dify_edge_upstream_queue_length", &[]).await;
        (queued == 1.0).then_some(())
    })
    .await;
    let answer = within("an answer at once", edge.ask(chat())).await;
    refused(&answer, 503, "service_unavailable");
    assert!(answer.field("retry-after").is_some());
}

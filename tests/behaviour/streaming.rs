//! Streams pass event by event, end when one side ends, and are cut only by what is set.

use std::sync::Arc;
use std::time::Duration;

use dify_edge::config::upstreams::TimeoutsConfig;
use dify_edge::types::units::Span;
use tokio::sync::Notify;

use crate::support::client::{Client, get, post};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, Script, answer, chunk, events, last_chunk};
use crate::support::wire::values;
use crate::support::{captures, eventually, metrics};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

fn chat() -> Vec<u8> {
    post(
        "/v1/chat-messages",
        &[KEY],
        "{\"query\": \"hi\", \"response_mode\": \"streaming\", \"user\": \"u\"}",
    )
}

async fn before(script: Script) -> (Origin, Running) {
    let origin = Origin::start(move |_| {
        let script = script.clone();
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    (origin, edge)
}

/// A stream of which the first event has come.
async fn begun(edge: &Running) -> Client {
    let mut client = edge.client().await;
    client.send(chat()).await;
    let (head, _) = client.final_head().await;
    assert!(head.line.starts_with("HTTP/1.1 200"), "{}", head.line);
    assert_eq!(next(&mut client).await, "data: first\n\n");
    client
}

async fn next(client: &mut Client) -> String {
    let chunk = client.chunk().await.expect("a chunk").expect("not the end");
    String::from_utf8(chunk).expect("UTF-8")
}

#[tokio::test]
async fn each_event_of_a_recorded_stream_arrives_before_the_origin_sends_the_next() {
    for record in captures::all()
        .iter()
        .filter(|record| record.response.framing == "chunked")
    {
        let go_on = Arc::new(Notify::new());
        let mut script = vec![events()];
        for event in &record.response.chunks {
            script.push(chunk(event));
            script.push(Action::Wait(go_on.clone()));
        }
        script.push(last_chunk());
        let (_origin, edge) = before(script).await;
        let mut client = edge.client().await;
        client.send(chat()).await;
        client.final_head().await;
        for event in &record.response.chunks {
            let mut arrived = Vec::new();
            while arrived.len() < event.len() {
                arrived.extend(client.chunk().await.expect("a chunk").expect("not the end"));
            }
            assert!(arrived == *event, "{}", record.title());
            go_on.notify_one();
        }
        assert_eq!(client.chunk().await.expect("the end"), None);
    }
}

#[tokio::test]
async fn ping_events_are_passed_on_as_they_are() {
    let ping = "event: ping\n\n";
    let (_origin, edge) = before(vec![
        events(),
        chunk("data: first\n\n"),
        chunk(ping),
        chunk(ping),
        last_chunk(),
    ])
    .await;
    let answer = edge.ask(chat()).await;
    assert_eq!(answer.text(), format!("data: first\n\n{ping}{ping}"));
    let recorded = captures::of_variant("v1_workflow_long_streaming_ping", "fork");
    let pings = memchr::memmem::find_iter(&recorded.response.body, ping).count();
    assert!(pings > 0, "the recording has pings");
}

#[tokio::test]
async fn when_the_client_leaves_the_origin_sees_it() {
    let (origin, edge) = before(vec![
        events(),
        chunk("data: first\n\n"),
        Action::Wait(Arc::default()),
    ])
    .await;
    let client = begun(&edge).await;
    assert_eq!(metrics::sum(edge.admin, "dify_edge_open_streams", &[]).await, 1.0);
    drop(client);
    origin
        .until("the end of the stream", |counts| counts.left == 1)
        .await;
    eventually("the stream to be counted out", || async {
        (metrics::sum(edge.admin, "dify_edge_open_streams", &[]).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_ends_the_request_at_the_origin_too() {
    let (origin, edge) = before(vec![Action::Wait(Arc::default())]).await;
    let mut client = edge.client().await;
    client.send(chat()).await;
    origin.until("the request", |counts| counts.requests == 1).await;
    drop(client);
    origin.until("the end", |counts| counts.left == 1).await;
}

#[tokio::test]
async fn an_origin_that_breaks_off_is_a_break_for_the_client_and_never_a_clean_end() {
    for end in [Action::Abort, Action::Close] {
        let go_on = Arc::new(Notify::new());
        let (_origin, edge) = before(vec![
            events(),
            chunk("data: first\n\n"),
            Action::Wait(go_on.clone()),
            end,
        ])
        .await;
        let mut client = begun(&edge).await;
        go_on.notify_one();
        assert!(client.chunk().await.is_err(), "a clean end");
    }
}

#[tokio::test]
async fn to_an_http_1_0_client_a_break_is_a_reset_because_a_close_would_look_like_the_end() {
    let go_on = Arc::new(Notify::new());
    let (_origin, edge) = before(vec![
        events(),
        chunk("data: first\n\n"),
        Action::Wait(go_on.clone()),
        Action::Abort,
    ])
    .await;
    let mut client = edge.client().await;
    let request = String::from_utf8(chat())
        .expect("text")
        .replace("HTTP/1.1", "HTTP/1.0");
    client.send(request).await;
    let (head, _) = client.final_head().await;
    assert!(values(&head.fields, "transfer-encoding").is_empty());
    assert_eq!(
        client.exact(13).await.expect("the first event"),
        b"data: first\n\n"
    );
    go_on.notify_one();
    assert!(!client.ends_cleanly().await);
}

#[tokio::test]
async fn silence_cuts_a_stream_after_the_idle_time_that_is_set_and_that_is_300_s_by_default() {
    assert_eq!(TimeoutsConfig::default().idle, Span::secs(300));
    let script = vec![events(), chunk("data: first\n\n"), Action::Wait(Arc::default())];
    let origin = Origin::start(move |_| {
        let script = script.clone();
        async move { script }
    })
    .await;
    let idle = Duration::from_millis(300);
    let edge = edge::start(&[origin.address], |config| {
        edge::api(config).timeouts.idle = Span(idle);
        // Neither of these is for a generation.
        edge::api(config).timeouts.total = Span::millis(50);
        edge::api(config).timeouts.write = Span::millis(50);
    })
    .await;
    let mut client = begun(&edge).await;
    let since = std::time::Instant::now();
    assert!(client.chunk().await.is_err(), "a clean end");
    assert!(
        since.elapsed() >= idle * 9 / 10,
        "cut after {:?}",
        since.elapsed()
    );
    origin
        .until("the end at the origin", |counts| counts.left == 1)
        .await;
}

#[tokio::test]
async fn a_generation_may_take_longer_than_the_total_time_of_short_requests() {
    let gate = Arc::new(Notify::new());
    let script = vec![
        events(),
        chunk("data: first\n\n"),
        Action::Wait(gate.clone()),
        chunk("data: last\n\n"),
        last_chunk(),
    ];
    let short = vec![Action::Wait(Arc::default())];
    let origin = Origin::start(move |seen| {
        let script = if seen.method == "GET" {
            short.clone()
        } else {
            script.clone()
        };
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |config| {
        edge::api(config).timeouts.total = Span::millis(200);
    })
    .await;
    let mut client = begun(&edge).await;
    // The time of a short request runs out beside it.
    let late = edge.ask(get("/v1/info", &[KEY])).await;
    assert_eq!((late.status, late.json()["status"].clone()), (504, 504.into()));
    gate.notify_one();
    assert_eq!(next(&mut client).await, "data: last\n\n");
    assert_eq!(client.chunk().await.expect("a clean end"), None);
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test]
async fn bytes_pass_both_ways_once_the_origin_has_agreed_to_an_upgrade() {
    let go_on = Arc::new(Notify::new());
    let agree = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let (origin, edge) = before(vec![
        Action::Wait(go_on.clone()),
        Action::Send(agree.into()),
        Action::Echo,
    ])
    .await;
    let mut client = edge.client().await;
    client
        .send(get("/socket.io/?transport=websocket", &UPGRADE))
        .await;
    origin.until("the request", |counts| counts.requests == 1).await;
    let seen = origin.seen().pop().expect("a request");
    assert_eq!(seen.field("upgrade"), Some("websocket"));
    assert!(
        seen.field("connection")
            .is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"))
    );
    assert_eq!(seen.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    go_on.notify_one();
    let (head, _) = client.final_head().await;
    assert!(head.line.starts_with("HTTP/1.1 101"), "{}", head.line);
    assert_eq!(values(&head.fields, "sec-websocket-accept").len(), 1);
    for message in ["\u{1}one", "\u{2}two and more"] {
        client.send(message).await;
        let back = client.exact(message.len()).await.expect("an echo");
        assert_eq!(back, message.as_bytes());
    }
    drop(client);
    origin
        .until("the end of the tunnel", |counts| counts.left == 1)
        .await;
}

#[tokio::test]
async fn what_follows_an_upgrade_that_is_refused_is_not_sent_to_the_origin_as_bytes() {
    let (origin, edge) = before(answer(400, &[], "no upgrade here")).await;
    let mut client = edge.client().await;
    let mut bytes = get("/socket.io/?transport=websocket", &UPGRADE);
    bytes.extend_from_slice(b"\x81\x05hello, not HTTP\r\n\r\n");
    client.send(&bytes).await;
    let refused = client.response("GET").await;
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (400, "no upgrade here")
    );
    // Another request is an ordinary one, and the bytes never came.
    let second = edge.ask(get("/socket.io/?transport=polling", &[])).await;
    assert_eq!(second.status, 400);
    assert_eq!(
        origin.lines(),
        [
            "GET /socket.io/?transport=websocket",
            "GET /socket.io/?transport=polling"
        ]
    );
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer_and_the_connection_goes_on() {
    let (origin, edge) = before(answer(200, &[], "plain")).await;
    let mut client = edge.client().await;
    for _ in 0..2 {
        let plain = client
            .exchange(get("/socket.io/?transport=websocket", &UPGRADE))
            .await;
        assert_eq!(
            (plain.status, plain.text().as_str(), plain.cut),
            (200, "plain", None)
        );
    }
    assert_eq!(origin.counts().requests, 2);
}

//! A signal ends the program without ending what is under way, unless that takes too long.

use std::sync::Arc;
use std::time::Duration;

use dify_edge::config::AccessLog;
use dify_edge::types::units::Span;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::child::{self, Served};
use crate::support::client::{Client, get, post};
use crate::support::origin::{Action, Origin, chunk, events, json, last_chunk};
use crate::support::{edge, eventually, metrics};

fn chat() -> Vec<u8> {
    post(
        "/v1/chat-messages",
        &[("Authorization", "Bearer app-1")],
        "{\"query\": \"hi\", \"user\": \"u\"}",
    )
}

/// A program with a stream under way that goes on when it is told to.
async fn streaming(drain_timeout: Span) -> (Origin, Served, Client, Arc<Notify>) {
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let origin = Origin::start(move |seen| {
        let gate = gate.clone();
        async move {
            if seen.method == "GET" {
                return json(200, "{}");
            }
            vec![
                events(),
                chunk("data: first\n\n"),
                Action::Wait(gate),
                chunk("data: last\n\n"),
                last_chunk(),
            ]
        }
    })
    .await;
    let mut config = edge::config(&[origin.address]);
    config.drain_timeout = drain_timeout;
    let served = child::serve(config, AccessLog::Off).await;
    let mut client = Client::connect(served.address).await;
    client.send(chat()).await;
    client.final_head().await;
    client.chunk().await.expect("the first event");
    (origin, served, client, go_on)
}

async fn until_draining(served: &Served) {
    eventually("the signal to be taken", || async {
        served.log().contains("draining").then_some(())
    })
    .await;
}

async fn until_refused(served: &Served) {
    eventually("new connections to be refused", || async {
        TcpStream::connect(served.address).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_signal_lets_a_stream_finish_and_takes_nothing_new() {
    for signal in ["TERM", "INT"] {
        let (_origin, served, mut client, go_on) = streaming(Span::secs(60)).await;
        assert_eq!(metrics::ask(served.admin, "/ready").await.status, 200);
        served.signal(signal);
        until_draining(&served).await;
        eventually("readiness to go", || async {
            (metrics::ask(served.admin, "/ready").await.status == 503).then_some(())
        })
        .await;
        assert_eq!(metrics::ask(served.admin, "/live").await.status, 200);
        until_refused(&served).await;
        go_on.notify_one();
        assert_eq!(
            client.chunk().await.expect("a chunk").expect("an event"),
            b"data: last\n\n"
        );
        assert_eq!(client.chunk().await.expect("a clean end"), None);
        let (status, log) = served.end().await;
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

#[tokio::test]
async fn what_takes_longer_than_the_drain_timeout_is_cut() {
    let (_origin, served, mut client, _go_on) = streaming(Span::millis(200)).await;
    served.signal("TERM");
    assert!(client.chunk().await.is_err(), "a clean end");
    let (status, log) = served.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_the_program_at_once() {
    let (_origin, served, mut client, _go_on) = streaming(Span::secs(60)).await;
    served.signal("TERM");
    until_draining(&served).await;
    served.signal("TERM");
    assert!(client.chunk().await.is_err(), "a clean end");
    let (status, _) = served.end().await;
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn a_connection_at_rest_is_closed_by_the_drain() {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    client.exchange(get("/console/api/apps", &[])).await;
    assert_eq!(edge.drain(Duration::from_secs(5)).await, 0);
    assert!(client.ends_cleanly().await);
}

#[tokio::test]
async fn a_request_under_way_is_answered_and_told_that_the_connection_ends() {
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let origin = Origin::start(move |_| {
        let mut script = vec![Action::Wait(gate.clone())];
        script.extend(json(200, "{}"));
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let address = edge.address;
    let mut client = edge.client().await;
    client.send(get("/console/api/apps", &[])).await;
    origin.until("the request", |counts| counts.requests == 1).await;
    let draining = tokio::spawn(edge.drain(Duration::from_secs(5)));
    eventually("new connections to be refused", || async {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    go_on.notify_one();
    let answer = client.response("GET").await;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert!(client.ends_cleanly().await);
    assert_eq!(draining.await.expect("the drain"), 0);
}

//! While one replica works, requests are answered; a replica that comes back is used again.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dify_edge::config::Config;
use dify_edge::types::units::Span;

use crate::support::client::{get, post};
use crate::support::edge::{self, Running};
use crate::support::metrics;
use crate::support::origin::{Action, Options, Origin, json};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

/// An origin that says its name.
async fn named(name: &'static str) -> Origin {
    Origin::start(move |_| async move { json(200, name) }).await
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.local_addr().expect("its address")
}

fn quick_probes(config: &mut Config) {
    let check = &mut edge::api(config).health_check;
    check.interval = Span::millis(50);
    check.timeout = Span::millis(200);
}

/// A read that is not kept.
pub fn read() -> Vec<u8> {
    get("/console/api/apps", &[("Cookie", "access_token=a")])
}

/// A write.
pub fn write() -> Vec<u8> {
    post(
        "/v1/chat-messages",
        &[KEY],
        "{\"query\": \"hi\", \"user\": \"u\"}",
    )
}

/// Asks so many times; who answered.
async fn who_answers(edge: &Running, times: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for number in 0..times {
        let answer = edge.ask(if number % 2 == 0 { read() } else { write() }).await;
        assert_eq!(answer.status, 200, "{number}: {}", answer.text());
        names.insert(answer.text());
    }
    names
}

#[tokio::test]
async fn replicas_are_used_in_turn() {
    let (one, two) = (named("one").await, named("two").await);
    let edge = edge::start(&[one.address, two.address], |_| {}).await;
    who_answers(&edge, 20).await;
    let (first, second) = (one.counts().requests, two.counts().requests);
    assert!(
        first.abs_diff(second) <= 2 && first + second == 20,
        "{first} and {second}"
    );
}

#[tokio::test]
async fn a_replica_that_refuses_connections_costs_no_request_neither_read_nor_write() {
    let two = named("two").await;
    let edge = edge::start(&[nobody(), two.address], |_| {}).await;
    assert_eq!(who_answers(&edge, 40).await, BTreeSet::from(["two".to_owned()]));
    assert_eq!(two.counts().requests, 40);
}

#[tokio::test]
async fn a_read_is_tried_elsewhere_when_a_replica_breaks_off_and_a_write_that_was_sent_is_not() {
    let broken = Origin::start(|_| async { vec![Action::Abort] }).await;
    let two = named("two").await;
    let edge = edge::start(&[broken.address, two.address], |config| {
        edge::api(config).health_check.unhealthy_after = 1000;
    })
    .await;
    for _ in 0..10 {
        assert_eq!(edge.ask(read()).await.text(), "two");
    }
    let before = broken.counts().requests + two.counts().requests;
    let mut failed = 0;
    for _ in 0..10 {
        let answer = edge.ask(write()).await;
        failed += usize::from(answer.status == 502);
    }
    assert!(failed > 0);
    assert_eq!(
        broken.counts().requests + two.counts().requests - before,
        10,
        "a write was sent twice"
    );
}

#[tokio::test]
async fn a_replica_that_hangs_is_left_out_and_used_again_once_it_answers() {
    let (one, two) = (named("one").await, named("two").await);
    let edge = edge::start(&[one.address, two.address], quick_probes).await;
    assert_eq!(who_answers(&edge, 8).await.len(), 2);
    one.stop();
    metrics::until_healthy(edge.admin, 1.0).await;
    let before = one.counts().requests;
    assert_eq!(who_answers(&edge, 40).await, BTreeSet::from(["two".to_owned()]));
    assert_eq!(one.counts().requests, before);
    one.go_on();
    metrics::until_healthy(edge.admin, 2.0).await;
    assert_eq!(who_answers(&edge, 8).await.len(), 2);
}

#[tokio::test]
async fn requests_that_hang_are_enough_to_leave_a_replica_out_without_any_probe() {
    let (one, two) = (named("one").await, named("two").await);
    let edge = edge::start(&[one.address, two.address], |config| {
        // A console read that is not kept may take as long as a write.
        edge::api(config).timeouts.write = Span::millis(1_100);
        edge::api(config).health_check.unhealthy_after = 1;
    })
    .await;
    one.stop();
    let mut late = 0;
    for _ in 0..20 {
        let answer = edge.ask(read()).await;
        match answer.status {
            504 => late += 1,
            status => assert_eq!((status, answer.text().as_str()), (200, "two")),
        }
    }
    assert!(late <= 1, "{late} of 20 requests waited for a replica that hangs");
}

#[tokio::test]
async fn a_replica_that_died_is_used_again_when_another_process_takes_its_address() {
    let (one, two) = (named("one").await, named("two").await);
    let address = one.address;
    let edge = edge::start(&[address, two.address], quick_probes).await;
    assert_eq!(who_answers(&edge, 8).await.len(), 2);
    drop(one);
    metrics::until_healthy(edge.admin, 1.0).await;
    assert_eq!(who_answers(&edge, 20).await, BTreeSet::from(["two".to_owned()]));
    let _again = Origin::start_at(address, Options::default(), |_| async { json(200, "again") }).await;
    metrics::until_healthy(edge.admin, 2.0).await;
    assert!(who_answers(&edge, 8).await.contains("again"));
}

#[tokio::test]
async fn without_any_replica_the_answer_says_so_as_dify_would() {
    let edge = edge::start(&[nobody()], |_| {}).await;
    let answer = edge.ask(read()).await;
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    let json = answer.json();
    assert_eq!(json["status"], answer.status);
    assert!(json["code"].is_string() && json["message"].is_string());
    assert!(answer.field("proxy-status").is_some());
}

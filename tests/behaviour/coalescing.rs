//! Concurrent misses for one key are one request upstream, whoever leaves and whatever comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Barrier, Notify};

use crate::support::client::{Client, get};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, Script, chunk, chunked, json, last_chunk};
use crate::support::{eventually, metrics};

const CLIENTS: usize = 1000;

fn info() -> Vec<u8> {
    get("/v1/info", &[("Authorization", "Bearer app-1")])
}

/// An origin that holds its first answer until it is told to go on, and a proxy before it.
async fn held(script: impl Fn() -> Script + Send + Sync + 'static) -> (Origin, Running, Arc<Notify>) {
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let origin = Origin::start(move |_| {
        let mut steps = vec![Action::Wait(gate.clone())];
        steps.extend(script());
        async move { steps }
    })
    .await;
    let edge = edge::start(&[origin.address], |config| {
        config.limits.connections_per_peer = 2 * CLIENTS;
        // Twenty answers that break off are enough for it.
        config.circuit_breaker.enabled = false;
    })
    .await;
    (origin, edge, go_on)
}

/// A large answer in several chunks, so that whole and cut can be told apart.
fn large() -> Vec<u8> {
    (0..40_000_u32).flat_map(|number| number.to_le_bytes()).collect()
}

fn large_script() -> Script {
    let mut script = vec![chunked(&[("Content-Type", "application/json")])];
    script.extend(large().chunks(10_000).map(chunk));
    script.push(last_chunk());
    script
}

/// Connects and asks; does not wait for an answer.
async fn asking(edge: &Running, number: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(number);
    for _ in 0..number {
        let mut client = edge.client().await;
        client.send(info()).await;
        clients.push(client);
    }
    clients
}

async fn coalesced(edge: &Running, enough: usize) {
    eventually("the requests to wait for one", || async {
        let waiting = metrics::sum(edge.admin, "dify_edge_cache_coalesced_total", &[]).await;
        (waiting >= enough as f64).then_some(())
    })
    .await;
}

async fn all_whole(clients: Vec<Client>) {
    let expected = large();
    for mut client in clients {
        let answer = client.response("GET").await;
        assert_eq!((answer.status, answer.cut), (200, None));
        assert!(answer.body == expected, "{} bytes", answer.body.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_clients_are_one_request_upstream_and_a_thousand_whole_answers() {
    let (origin, edge, go_on) = held(large_script).await;
    let clients = asking(&edge, CLIENTS).await;
    coalesced(&edge, CLIENTS - 1).await;
    go_on.notify_one();
    all_whole(clients).await;
    assert_eq!(origin.counts().requests, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_get_their_answer_when_the_client_that_came_first_leaves() {
    let (origin, edge, go_on) = held(large_script).await;
    let first = asking(&edge, 1).await;
    origin
        .until("the first request", |counts| counts.requests == 1)
        .await;
    let others = asking(&edge, CLIENTS - 1).await;
    coalesced(&edge, CLIENTS - 1).await;
    drop(first);
    eventually("the proxy to see that the first client left", || async {
        let open = metrics::sum(edge.admin, "dify_edge_connections", &[]).await;
        (open < CLIENTS as f64).then_some(())
    })
    .await;
    go_on.notify_one();
    all_whole(others).await;
    assert_eq!((origin.counts().requests, origin.counts().left), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_stored_releases_all_who_wait_at_once() {
    const WAITING: usize = 50;
    let go_on = Arc::new(Notify::new());
    let (gate, first) = (go_on.clone(), AtomicBool::new(true));
    let together = Arc::new(Barrier::new(WAITING - 1));
    let origin = Origin::start(move |_| {
        let (gate, together) = (gate.clone(), together.clone());
        let first = first.swap(false, Ordering::Relaxed);
        async move {
            if first {
                gate.notified().await;
            } else {
                // None goes on in another's stead: nobody is answered before all are here.
                together.wait().await;
            }
            json(403, "{\"code\": \"forbidden\"}")
        }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let clients = asking(&edge, WAITING).await;
    coalesced(&edge, WAITING - 1).await;
    go_on.notify_one();
    for mut client in clients {
        let answer = client.response("GET").await;
        assert_eq!((answer.status, answer.cut), (403, None));
        assert!(
            !answer.is_hit() && !answer.is_stored(),
            "{}",
            answer.cache_status()
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_break_for_all_and_nothing_is_kept() {
    const WAITING: usize = 20;
    let (origin, edge, go_on) = held(|| {
        vec![
            chunked(&[("Content-Type", "application/json")]),
            chunk("half of"),
            Action::Abort,
        ]
    })
    .await;
    let clients = asking(&edge, WAITING).await;
    coalesced(&edge, WAITING - 1).await;
    go_on.notify_one();
    for mut client in clients {
        // Notifies whoever of them asked again.
        let mut answered = Box::pin(client.response("GET"));
        let answer = loop {
            go_on.notify_one();
            tokio::select! {
                biased;
                answer = &mut answered => break answer,
                () = tokio::task::yield_now() => {}
            }
        };
        let whole = answer.status == 200 && answer.cut.is_none();
        assert!(!whole, "{}: {:?}", answer.status, answer.text());
    }
    go_on.notify_one();
    let asked = origin.counts().requests;
    edge.ask(info()).await;
    assert!(origin.counts().requests > asked, "the broken answer was kept");
}

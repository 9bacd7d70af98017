//! What a server with ten connections cannot take at once waits in the proxy: pages do not wait for streams, and the
//! server's own queue stays short.

use std::sync::Arc;
use std::time::Duration;

use dify_edge::config::upstreams::Capacity;
use dify_edge::types::time::Clock;
use dify_edge::types::units::Span;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::{Client, get, post};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Options, Origin, chunk, events, json};
use crate::support::{eventually, metrics};

/// What a stock dify-api container serves at once.
const SLOTS: usize = 10;
/// How long a page takes.
const PAGE: Duration = Duration::from_millis(100);

fn page(who: usize) -> Vec<u8> {
    get("/console/api/apps", &[("Cookie", &format!("access_token={who}"))])
}

fn stream(who: usize) -> Vec<u8> {
    let key = format!("Bearer app-{who}");
    post(
        "/v1/chat-messages",
        &[("Authorization", &key)],
        "{\"query\": \"hi\", \"user\": \"u\", \"response_mode\": \"streaming\"}",
    )
}

/// Pages that take their time, and streams that begin and never end.
async fn ten_slots() -> Origin {
    let options = Options {
        slots: Some(SLOTS),
        idle_close: Some(Duration::from_secs(2)),
        ..Options::default()
    };
    Origin::start_with(options, |seen| async move {
        if seen.method == "POST" {
            return vec![
                events(),
                chunk("data: {}\n\n"),
                Action::Wait(Arc::new(Notify::new())),
            ];
        }
        tokio::time::sleep(PAGE).await;
        json(200, "[]")
    })
    .await
}

/// The proxy before it, with what it takes a replica of dify-api for unless it is told.
async fn edge(origin: &Origin) -> Running {
    edge::start(&[origin.address], |config| {
        let api = edge::api(config);
        api.capacity = Some(Capacity::OF_DIFY);
        // Two hundred at once take their time on a slow machine.
        api.timeouts.total = Span::secs(30);
    })
    .await
}

/// The 99th percentile (nearest rank) of a hundred pages that two people ask for, one after the other.
async fn p99(edge: &Running) -> Duration {
    let mut asking = JoinSet::new();
    for who in 0..2 {
        let mut client = edge.client().await;
        asking.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..50 {
                let start = Clock::System.now().monotonic;
                assert_eq!(client.exchange(page(who)).await.status, 200);
                times.push(start.elapsed());
            }
            times
        });
    }
    let mut times: Vec<_> = asking.join_all().await.concat();
    times.sort();
    times[98]
}

/// Connections that wait to be accepted at `port`, as the kernel tells.
#[cfg(target_os = "linux")]
fn backlog(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let listens = |line: &&str| {
        let mut words = line.split_whitespace();
        let local = words.nth(1).unwrap_or_default();
        local.ends_with(&format!(":{port:04X}")) && words.nth(1) == Some("0A")
    };
    let line = table.lines().find(listens).expect("the listening socket");
    let queues = line.split_whitespace().nth(4).expect("its queues");
    let (_, waiting) = queues.split_once(':').expect("two of them");
    usize::from_str_radix(waiting, 16).expect("a number")
}

/// Two hundred people ask for a page each at `address`, on connections of their own; the longest backlog of `origin`
/// meanwhile.
#[cfg(target_os = "linux")]
async fn rush(origin: &Origin, address: std::net::SocketAddr) -> usize {
    let mut asking = JoinSet::new();
    for who in 0..200 {
        asking.spawn(async move { Client::connect(address).await.exchange(page(who)).await.status });
    }
    let mut longest = 0;
    let watching = async {
        let mut last = [0; 3];
        loop {
            // What is accepted within a moment has not waited: a place was free.
            last.rotate_left(1);
            last[2] = backlog(origin.address.port());
            longest = longest.max(last.into_iter().min().unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let statuses = tokio::select! {
        statuses = asking.join_all() => statuses,
        () = watching => Vec::new(),
    };
    assert_eq!(statuses, [200; 200]);
    longest
}

#[tokio::test]
async fn forty_streams_do_not_make_pages_wait() {
    let origin = ten_slots().await;
    let edge = edge(&origin).await;
    let unloaded = p99(&edge).await;
    let mut streams = Vec::new();
    for who in 0..40 {
        let mut client = edge.client().await;
        client.send(stream(who)).await;
        streams.push(client);
    }
    // Eight of ten places are used, and 70 % of these at most for streams.
    eventually("five streams to run and the others to wait", || async {
        let waiting = metrics::sum(edge.admin, "dify_edge_upstream_queue_length", &["generation"]).await;
        (waiting == 35.0).then_some(())
    })
    .await;
    let loaded = p99(&edge).await;
    assert!(loaded <= 2 * unloaded, "{loaded:?} beside {unloaded:?}");
}

#[tokio::test]
async fn without_the_proxy_ten_streams_make_a_page_wait_for_ever() {
    let origin = ten_slots().await;
    let mut streams = Vec::new();
    for who in 0..SLOTS {
        let mut client = Client::connect(origin.address).await;
        client.send(stream(who)).await;
        client.final_head().await;
        streams.push(client);
    }
    let mut client = Client::connect(origin.address).await;
    let answer = timeout(5 * PAGE, client.exchange(page(0))).await;
    assert!(answer.is_err(), "all its places are taken");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn two_hundred_clients_at_once_do_not_make_the_server_have_a_backlog() {
    let origin = ten_slots().await;
    let edge = edge(&origin).await;
    let longest = rush(&origin, edge.address).await;
    assert!(longest < 5, "{longest}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn without_the_proxy_two_hundred_clients_make_a_backlog() {
    let origin = ten_slots().await;
    let longest = rush(&origin, origin.address).await;
    assert!(longest >= 100, "{longest}");
}

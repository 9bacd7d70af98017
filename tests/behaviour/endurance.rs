//! An origin that closes connections whenever it likes costs no request and sends no write twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{Client, get, post};
use crate::support::edge;
use crate::support::origin::{Options, Origin, json};

/// Requests in all, unless the environment says otherwise.
const REQUESTS: usize = 100_000;
/// Clients at once, in turns: with few, the connections of the many come to rest and are closed.
const WAVES: [usize; 2] = [32, 2];
/// Requests of one wave with the most clients.
const WAVE: usize = 2_000;

fn requests() -> usize {
    match std::env::var("DIFY_EDGE_ENDURANCE") {
        Ok(number) => number.parse().expect("DIFY_EDGE_ENDURANCE is a number"),
        Err(_) => REQUESTS,
    }
}

/// Every fourth request is a write.
fn is_write(number: usize) -> bool {
    number % 4 == 3
}

/// What was asked for `number`, and what must come back.
fn request(number: usize) -> Vec<u8> {
    let name = number.to_string();
    let fields = [("Authorization", "Bearer app-1"), ("X-Number", name.as_str())];
    if is_write(number) {
        post(
            "/v1/chat-messages",
            &fields,
            &format!("{{\"query\": \"{number}\", \"user\": \"u\"}}"),
        )
    } else {
        get("/console/api/apps", &fields)
    }
}

/// Takes numbers until the wave has none left.
async fn work(mut client: Client, next: Arc<AtomicUsize>, end: usize) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return;
        }
        let answer = client.exchange(request(number)).await;
        assert_eq!(
            (answer.status, answer.cut),
            (200, None),
            "{number}: {}",
            answer.text()
        );
        assert_eq!(answer.text(), number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_closes_after_every_kth_answer_and_when_idle_serves_all_requests_and_each_write_once()
{
    let all = requests();
    let arrived: Arc<Vec<AtomicU8>> = Arc::new((0..all).map(|_| AtomicU8::new(0)).collect());
    let counted = arrived.clone();
    let options = Options {
        close_after: Some(7),
        idle_close: Some(Duration::from_millis(5)),
        forget: true,
        ..Options::default()
    };
    let origin = Origin::start_with(options, move |seen| {
        let number: usize = seen
            .field("x-number")
            .and_then(|text| text.parse().ok())
            .expect("a number");
        counted[number].fetch_add(1, Ordering::Relaxed);
        async move { json(200, number.to_string()) }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let (mut begin, mut waves) = (0, WAVES.iter().cycle());
    while begin < all {
        let clients = *waves.next().expect("they go round");
        let share = WAVE * clients / WAVES[0];
        let end = all.min(begin + share);
        let next = Arc::new(AtomicUsize::new(begin));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(work(edge.client().await, next.clone(), end));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no request fails");
        }
        begin = end;
    }
    for (number, times) in arrived.iter().enumerate() {
        let times = times.load(Ordering::Relaxed);
        if is_write(number) {
            assert_eq!(times, 1, "write {number}");
        } else {
            assert!(times >= 1, "read {number}");
        }
    }
    let connections = origin.counts().connections;
    assert!(
        connections > all / 8,
        "{connections} connections: the origin did not close"
    );
}

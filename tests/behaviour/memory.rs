//! Whatever is asked and answered, the memory of the proxy stays within what its cache may hold and a fixed rest.
//!
//! The program runs as a process of its own, so that what is resident is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dify_edge::config::AccessLog;
use dify_edge::types::units::{Size, Span};

use crate::support::child::{self, Served};
use crate::support::client::{Client, get};
use crate::support::edge;
use crate::support::metrics;
use crate::support::origin::{Options, Origin, answer};

const MIB: u64 = 1 << 20;
/// What the cache may hold.
const BOUND: u64 = 32 * MIB;
/// What the process may take: a third more than the cache holds, for what an allocator cannot give back, and what
/// the program needs without any answer.
const MOST: u64 = BOUND * 13 / 10 + 64 * MIB;

/// What kind of answer the origin gives, by the first segment of `user`.
fn content(kind: &str) -> (Vec<(String, String)>, usize) {
    let json = ("Content-Type".to_owned(), "application/json".to_owned());
    let more = |count: usize, length: usize| {
        let field = |n| (format!("X-Field-{n}"), "v".repeat(length));
        std::iter::once(json.clone())
            .chain((0..count).map(field))
            .collect()
    };
    match kind {
        "tiny" => (more(5, 8), 1),
        "wide" => (more(80, 1), 1),
        "long" => (more(40, 1024), 1),
        "whole" => (more(5, 8), 4 << 20),
        other => panic!("{other}"),
    }
}

async fn origin() -> Origin {
    let options = Options {
        forget: true,
        ..Options::default()
    };
    Origin::start_with(options, |seen| {
        let kind = seen
            .target
            .split(['=', '-'])
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        async move {
            let (fields, length) = content(&kind);
            let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            answer(200, &fields, vec![b'1'; length])
        }
    })
    .await
}

async fn served(origin: &Origin, bound: u64) -> Served {
    let mut config = edge::config(&[origin.address]);
    config.cache.local.max_bytes = Some(Size(bound));
    config.cache.classes.metadata.ttl = Span::secs(3600);
    child::serve(config, AccessLog::Off).await
}

/// Asks `count` different questions, four at a time; every answer is stored.
async fn ask(served: &Served, count: usize, question: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) {
    let (next, question) = (Arc::new(AtomicUsize::new(0)), Arc::new(question));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut client = Client::connect(served.address).await;
        let (next, question) = (next.clone(), question.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let answer = client.exchange(question(number)).await;
                assert!(answer.is_stored(), "{number}: {}", answer.cache_status());
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("every answer is stored");
    }
}

fn question(user: &str, api_key: usize) -> Vec<u8> {
    let credential = format!("Bearer app-{api_key}");
    get(
        &format!("/v1/parameters?user={user}"),
        &[("Authorization", &credential)],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_within_the_bound_of_the_cache_whatever_is_stored() {
    type Question = fn(usize) -> Vec<u8>;
    let mixes: [(&str, usize, Question); 7] = [
        ("answers of one byte", 20_000, |n| {
            question(&format!("tiny-{n}"), 1)
        }),
        ("principals without end", 10_000, |n| question("tiny", n)),
        ("queries without end", 5_000, |n| {
            question(&format!("tiny-{n}-{}", "q".repeat(7_000)), 1)
        }),
        ("many fields", 4_000, |n| question(&format!("wide-{n}"), 1)),
        ("long fields", 1_500, |n| question(&format!("long-{n}"), 1)),
        ("large bodies", 32, |n| question(&format!("whole-{n}"), 1)),
        ("small answers after large ones", 6_000, |n| {
            let kind = if n % 400 == 0 { "whole" } else { "tiny" };
            question(&format!("{kind}-after-{n}"), 1)
        }),
    ];
    let origin = origin().await;
    for (name, count, question) in mixes {
        let served = served(&origin, BOUND).await;
        let start = served.peak_memory();
        ask(&served, count, question).await;
        let peak = served.peak_memory();
        println!("{name}: {peak} KiB, at first {start} KiB");
        assert!(peak << 10 <= MOST, "{name}: {peak} KiB, at first {start} KiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_for_small_answers_covers_what_they_take() {
    const WARM: usize = 1_000;
    const COUNT: usize = 6_000;
    let origin = origin().await;
    for kind in ["tiny", "wide"] {
        let served = served(&origin, 1 << 30).await;
        let counted = async || metrics::sum(served.admin, "dify_edge_cache_bytes", &[]).await;
        // What connections and pools take is there after the first answers.
        ask(&served, WARM, move |n| question(&format!("{kind}-first-{n}"), 1)).await;
        let (taken_before, counted_before) = (served.peak_memory(), counted().await);
        ask(&served, COUNT, move |n| question(&format!("{kind}-{n}"), 1)).await;
        let taken = ((served.peak_memory() - taken_before) << 10) as f64 / COUNT as f64;
        let counted = (counted().await - counted_before) / COUNT as f64;
        println!("{kind}: {taken:.0} bytes each, {counted:.0} counted");
        assert!(
            taken < counted * 1.3,
            "{kind}: {taken} bytes each, {counted} counted"
        );
    }
}

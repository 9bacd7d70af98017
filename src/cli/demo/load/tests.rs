//! The load asks as planned and counts what it saw.

use super::*;
use crate::cli::demo::replay::{Replay, ReplayOptions};

use crate::cli::demo::exchanges::exchanges;

fn mix() -> Mix {
    Mix::new(&exchanges(1), 7)
}

#[test]
fn popular_pages_are_asked_for_as_zipf_has_it() {
    let mix = mix();
    let mut random = Random(1);
    let mut counts = vec![0_u32; mix.reads.len()];
    for _ in 0..100_000 {
        let chosen: *const Question = mix.choose(Kind::Read, &mut random).unwrap();
        let index = mix
            .reads
            .iter()
            .position(|question| std::ptr::eq(question, chosen));
        counts[index.unwrap()] += 1;
    }
    let total = mix.weights.last().unwrap();
    for rank in [1, 2, 10, 40] {
        let expected = 100_000.0 / rank as f64 / total;
        let share = f64::from(counts[rank - 1]) / expected;
        assert!((0.85..1.15).contains(&share), "rank {rank}: {share}");
    }
}

#[test]
fn the_same_seed_asks_in_the_same_order() {
    let (one, other) = (mix(), mix());
    let (mut first, mut second) = (Random(3), Random(3));
    for _ in 0..100 {
        let (left, right) = (
            one.choose(Kind::Read, &mut first),
            other.choose(Kind::Read, &mut second),
        );
        assert_eq!(format!("{left:?}"), format!("{right:?}"));
    }
}

#[tokio::test]
async fn every_kind_of_client_is_answered_without_an_error() {
    let options = ReplayOptions {
        time_scale: 0.0,
        ..ReplayOptions::default()
    };
    let replay = Replay::start(exchanges(1), options).await.unwrap();
    let mix = mix();
    let mut client = Client::new(replay.address());
    let questions: Vec<_> = mix
        .reads
        .iter()
        .chain(&mix.streams)
        .chain(&mix.chats)
        .chain(&mix.writes)
        .collect();
    for question in &questions {
        let answer = client.ask(question).await.unwrap();
        assert!(!answer.body.is_empty() && !answer.hit);
    }
    assert_eq!(replay.counters().requests, questions.len() as u64);
    assert!(mix.reads.len() > 30 && mix.streams.len() > 3 && mix.chats.len() > 2 && mix.writes.len() > 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_counts_what_its_clients_saw() {
    let replay = Replay::start(exchanges(1), ReplayOptions::default())
        .await
        .unwrap();
    let plan = Plan {
        readers: 3,
        chatters: 2,
        askers: 2,
        writers: 2,
        pause: Duration::ZERO,
        duration: Duration::from_secs(6),
        seed: 1,
    };
    let live = Arc::new(Live::default());
    let outcome = run(&[replay.address()], &Arc::new(mix()), &plan, &live).await;
    assert_eq!(outcome.errors(), 0, "{:?}", outcome.reads.first_error);
    assert_eq!(outcome.answers(), live.answers());
    assert_eq!(outcome.answers(), replay.counters().requests);
    assert_eq!(live.moment().latency.count(), outcome.reads.latency.count());
    assert_eq!(live.moment().latency.count(), 0, "what was looked at is over");
    for seen in outcome.all() {
        assert!(seen.in_time > 0 && seen.in_time <= seen.latency.count());
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_without_an_error() {
    let options = ReplayOptions {
        time_scale: 0.0,
        idle_close: Some(Duration::ZERO),
        ..ReplayOptions::default()
    };
    let replay = Replay::start(exchanges(1), options).await.unwrap();
    let mix = mix();
    let mut client = Client::new(replay.address());
    for question in mix.reads.iter().cycle().take(300) {
        client.ask(question).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_is_an_error_that_names_the_request() {
    let replay = Replay::start(Vec::new(), ReplayOptions::default()).await.unwrap();
    let error = Client::new(replay.address())
        .ask(&Question::get("/v1/info"))
        .await
        .unwrap_err();
    assert!(error.contains("/v1/info answered 401"), "{error}");
}

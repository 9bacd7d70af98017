//! Random histories of reads, writes, purges, departures and time, step by step, on the real cache: the test
//! polls every future itself and lets the origin answer in pieces, so that the interleaving is the history's.
//!
//! Histories come from a seed and a failing one is cut down to a short one, which is printed with what happened.
//! `DIFY_EDGE_HISTORIES=N` plays N of each kind, `DIFY_EDGE_SEED=N` others.

mod checks;
mod origin;
mod steps;
mod world;

use std::cell::Cell;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::steps::{Step, history};
use self::world::World;
use crate::config::CacheConfig;
use crate::config::cache::RefreshAheadConfig;
use crate::types::units::{Ratio, Span};

/// Histories of each kind, unless the environment says otherwise.
const HISTORIES: u32 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn windows(while_revalidating: u64, on_error: u64) -> CacheConfig {
    let mut config = CacheConfig::default();
    config.classes.metadata.ttl = Span::secs(10);
    config.classes.metadata.stale_while_revalidate = Span::secs(while_revalidating);
    config.classes.metadata.stale_if_error = Span::secs(on_error);
    config.classes.not_found.ttl = Span::secs(3);
    config
}

fn hold_in_every_history(kind: u8, config: &CacheConfig) {
    let cases = number("DIFY_EDGE_HISTORIES").map_or(HISTORIES, |n| n as u32);
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&number("DIFY_EDGE_SEED").unwrap_or(1).to_le_bytes());
    let settings = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let (played, answers, found) = (Cell::new(0), Cell::new(0), Cell::new(None));
    let result = runner.run(&history(), |steps| {
        let mut world = World::new(config.clone(), false);
        let result = runtime.block_on(world.play(&steps));
        played.set(played.get() + 1);
        answers.set(answers.get() + world.answers);
        result.map_err(|why| {
            found.set(found.get().or(Some(played.get())));
            TestCaseError::fail(why)
        })
    });
    let answers = answers.get();
    match result {
        Ok(()) => assert!(
            answers > u64::from(cases),
            "the histories say nothing: {answers} answers"
        ),
        Err(TestError::Fail(_, mut steps)) => {
            let play = |steps: &[Step], log| {
                let mut world = World::new(config.clone(), log);
                let result = runtime.block_on(world.play(steps));
                (result, world.log.unwrap_or_default())
            };
            // Leaves nothing in that is not needed for some failure.
            let mut at = steps.len();
            while at > 0 {
                at -= 1;
                let step = steps.remove(at);
                if play(&steps, false).0.is_ok() {
                    steps.insert(at, step);
                } else {
                    at = steps.len();
                }
            }
            let (result, log) = play(&steps, true);
            let (number, log) = (found.get().unwrap_or_default(), log.join("\n"));
            panic!("{result:?}\nin history {number}, cut to:\n{log}");
        }
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn no_history_breaks_a_promise() {
    hold_in_every_history(0, &windows(5, 120));
}

#[test]
fn no_history_breaks_a_promise_when_hot_answers_are_fetched_ahead() {
    let mut config = windows(20, 5);
    config.refresh_ahead = Some(RefreshAheadConfig {
        last: Ratio(0.5),
        min_hits: 2,
    });
    hold_in_every_history(1, &config);
}

#[test]
fn no_history_breaks_a_promise_without_stale_answers() {
    let mut config = windows(0, 0);
    config.classes.metadata.ttl = Span::secs(60);
    hold_in_every_history(2, &config);
}

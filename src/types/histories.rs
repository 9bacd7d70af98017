//! Plays random histories of the models in the tests, and cuts a failing one down to a short one, which is printed with
//! what happened.
//!
//! `DIFY_EDGE_HISTORIES=N` plays N of each kind, `DIFY_EDGE_SEED=N` others.

use std::cell::Cell;
use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// What came of a history.
pub(crate) struct Played {
    pub(crate) result: Result<(), String>,
    /// Answers that clients got.
    pub(crate) answers: u64,
    pub(crate) log: Vec<String>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays `count` histories, unless the environment says otherwise; `play` gets the steps and whether a log is wanted.
pub(crate) fn hold_in_every<S: Clone + Debug>(
    kind: u8,
    count: u32,
    histories: &impl Strategy<Value = Vec<S>>,
    play: impl Fn(&[S], bool) -> Played,
) {
    let cases = number("DIFY_EDGE_HISTORIES").map_or(count, |n| n as u32);
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&number("DIFY_EDGE_SEED").unwrap_or(1).to_le_bytes());
    let settings = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let (number, answers, found) = (Cell::new(0), Cell::new(0), Cell::new(None));
    let result = runner.run(histories, |steps| {
        let played = play(&steps, false);
        number.set(number.get() + 1);
        answers.set(answers.get() + played.answers);
        played.result.map_err(|why| {
            found.set(found.get().or(Some(number.get())));
            TestCaseError::fail(why)
        })
    });
    let answers = answers.get();
    match result {
        Ok(()) => assert!(
            answers > u64::from(cases),
            "the histories say nothing: {answers} answers"
        ),
        Err(TestError::Fail(why, mut steps)) => {
            // Leaves nothing in that is not needed for some failure.
            let mut at = steps.len();
            while at > 0 {
                at -= 1;
                let step = steps.remove(at);
                if play(&steps, false).result.is_ok() {
                    steps.insert(at, step);
                } else {
                    at = steps.len();
                }
            }
            let played = play(&steps, true);
            let (number, log) = (found.get().unwrap_or_default(), played.log.join("\n"));
            panic!("{why}: {:?}\nin history {number}, cut to:\n{log}", played.result);
        }
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

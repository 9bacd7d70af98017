//! What was learnt about one replica lately, from which its score is made.
//!
//! Fed by what requests meet and by the probes; no clock and no lock of its own.

use std::time::Duration;

use tokio::time::Instant;

use super::ewma::{PeakEwma, left};
use super::resources::Resources;
use super::score::Inputs;

/// After this time, 63 % of what was counted is forgotten.
const MEMORY: Duration = Duration::from_secs(30);
/// So many good requests are taken for granted, so that one failure alone is not all that counts.
const GRANTED: f64 = 5.0;
/// The time from coming back to counting in full.
const SLOW_START: Duration = Duration::from_secs(30);

/// What was learnt about one replica.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    slowness: PeakEwma,
    errors: Share,
    probe: Option<bool>,
    back_since: Option<Instant>,
    /// What was measured of it.
    pub resources: Resources,
}

impl Signals {
    /// A request was answered; `ratio` is its time to the first byte over the usual one, if that tells something.
    pub fn answered(&mut self, ratio: Option<f64>, now: Instant) {
        self.errors.count(0.0, 1.0, now);
        if let Some(ratio) = ratio {
            self.slowness.observe(ratio, now);
        }
    }

    /// A request failed, and the replica is to blame.
    pub fn failed(&mut self, now: Instant) {
        self.errors.count(1.0, 1.0, now);
    }

    /// A probe was answered, or not.
    pub fn probed(&mut self, well: bool) {
        self.probe = Some(well);
    }

    /// The replica came back, or appeared: what was learnt from its answers is forgotten, and it starts slowly.
    pub fn came_back(&mut self, now: Instant) {
        *self = Self {
            back_since: Some(now),
            probe: self.probe,
            resources: std::mem::take(&mut self.resources),
            ..Self::default()
        };
    }

    /// What the score is made of, with `in_flight` as the share of slots in use.
    pub fn inputs(&self, in_flight: f64, now: Instant) -> Inputs {
        let start =
            |since: Instant| now.saturating_duration_since(since).as_secs_f64() / SLOW_START.as_secs_f64();
        Inputs {
            cpu: self.resources.cpu(now),
            network: self.resources.network(now),
            errors: self.errors.among(GRANTED, now),
            retransmits: self.resources.retransmits(now),
            in_flight: Some(in_flight),
            slowness: self.slowness.value(now),
            probe: self.probe,
            start: self.back_since.map(start),
        }
    }
}

/// The share of what went wrong, of which the later counts more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share(Option<Counted>);

#[derive(Debug, Clone, Copy)]
struct Counted {
    wrong: f64,
    all: f64,
    at: Instant,
}

impl Share {
    pub(super) fn count(&mut self, wrong: f64, all: f64, now: Instant) {
        let kept = self.0.map_or((0.0, 0.0), |counted| counted.left(now));
        self.0 = Some(Counted {
            wrong: kept.0 + wrong,
            all: kept.1 + all,
            at: now,
        });
    }

    /// The share among what was counted and so many more that went well.
    pub(super) fn among(&self, granted: f64, now: Instant) -> Option<f64> {
        let (wrong, all) = self.0?.left(now);
        Some(wrong / (all + granted))
    }
}

impl Counted {
    fn left(&self, now: Instant) -> (f64, f64) {
        let share = left(now.saturating_duration_since(self.at), MEMORY);
        (self.wrong * share, self.all * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::health::score::Parts;
    use crate::types::time::Clock;

    fn score(signals: &Signals, now: Instant) -> f64 {
        Parts::of(&signals.inputs(0.0, now)).score()
    }

    #[test]
    fn what_is_learnt_brings_the_score_down_and_time_brings_it_back() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signals = Signals::default();
        assert_eq!(score(&signals, start), 1.0, "nothing is known");
        signals.answered(Some(1.0), start);
        assert_eq!(score(&signals, start), 1.0, "as usual");
        for _ in 0..9 {
            signals.answered(Some(5.0), start);
        }
        let slow = score(&signals, start);
        signals.failed(start);
        let failing = score(&signals, start);
        signals.probed(false);
        let down = score(&signals, start);
        assert!(1.0 > slow && slow > failing && failing > down);
        assert!(score(&signals, at(20)) > down);
        signals.probed(true);
        assert!(score(&signals, at(600)) > 0.99);
    }

    #[test]
    fn failures_count_by_their_share_and_one_alone_not_in_full() {
        let now = Clock::System.now().monotonic;
        let rate = |failed: usize, all: usize| {
            let mut signals = Signals::default();
            (0..all).for_each(|n| {
                if n < failed {
                    signals.failed(now)
                } else {
                    signals.answered(None, now)
                }
            });
            signals.inputs(0.0, now).errors.unwrap()
        };
        assert!((rate(30, 100) - 0.3).abs() < 0.02);
        assert!((rate(1, 1) - 1.0 / 6.0).abs() < 1e-9);
        assert_eq!(rate(0, 10), 0.0);
    }

    #[test]
    fn a_replica_that_came_back_counts_little_at_first_and_in_full_after_half_a_minute() {
        let start = Clock::System.now().monotonic;
        let mut signals = Signals::default();
        signals.failed(start);
        signals.came_back(start);
        assert!((score(&signals, start) - 0.1).abs() < 1e-9);
        assert!((score(&signals, start + SLOW_START / 2) - 0.55).abs() < 1e-9);
        assert_eq!(score(&signals, start + SLOW_START), 1.0);
    }
}

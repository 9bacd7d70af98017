//! How long answers took lately: a histogram in which what is old counts less and less. Pure.
//!
//! Buckets grow by a fixed factor, so that a fast route and a slow one are known with the same precision in the same
//! small room. A value given is the upper end of its bucket: at most a fifth too long, never too short.

use std::time::Duration;

use tokio::time::Instant;

/// The upper end of the first bucket.
const FIRST: Duration = Duration::from_micros(500);
/// Each is so much longer than the one before.
const FACTOR: f64 = 1.189_207_115_002_721; // the fourth root of 2
/// Up to about a minute; what took longer is in the last one.
const BUCKETS: usize = 69;
/// After this time what was heard counts half.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Counts are aged in steps of this, not with each look.
const STEP: Duration = Duration::from_secs(1);
/// With fewer than these nothing is said.
pub(super) const LEAST: f64 = 20.0;

/// Times of one sort of requests.
#[derive(Debug, Clone)]
pub(super) struct Times {
    counts: [f32; BUCKETS],
    /// Until when the counts are aged.
    aged: Instant,
}

impl Times {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            counts: [0.0; BUCKETS],
            aged: now,
        }
    }

    /// Takes one answer into account.
    pub(super) fn observe(&mut self, time: Duration, now: Instant) {
        self.age(now);
        let ratio = time.as_secs_f64() / FIRST.as_secs_f64();
        // The cast takes what is shorter than the first to 0.
        let bucket = ratio.log(FACTOR).ceil() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1.0;
    }

    /// The time that `percent` of the answers did not take longer than; `None` when too few were heard of lately.
    pub(super) fn percentile(&mut self, percent: u32, now: Instant) -> Option<Duration> {
        self.age(now);
        let total: f64 = self.counts.iter().map(|count| f64::from(*count)).sum();
        // A hair less: a count that was never aged is what it is, one that was added up may be rounded.
        if total < LEAST - 1e-3 {
            return None;
        }
        let wanted = total * f64::from(percent) / 100.0;
        let mut sum = 0.0;
        let bucket = self.counts.iter().position(|count| {
            sum += f64::from(*count);
            sum >= wanted - 1e-3
        })?;
        Some(FIRST.mul_f64(FACTOR.powi(bucket as i32)))
    }

    fn age(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.aged);
        if passed < STEP {
            return;
        }
        let left = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2() as f32;
        self.counts.iter_mut().for_each(|count| *count *= left);
        self.aged = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;
    use proptest::prelude::*;

    fn start() -> Instant {
        Clock::System.now().monotonic
    }

    #[test]
    fn nothing_is_said_of_fewer_than_twenty_answers_or_of_those_long_ago() {
        let now = start();
        let mut times = Times::new(now);
        for heard in 0..20 {
            assert_eq!(times.percentile(95, now), None, "{heard}");
            times.observe(Duration::from_millis(10), now);
        }
        let p95 = times.percentile(95, now).expect("twenty are enough");
        assert!(p95 >= Duration::from_millis(10) && p95 <= Duration::from_millis(12));
        assert_eq!(times.percentile(95, now + HALF_LIFE), None);
    }

    #[test]
    fn what_is_new_soon_outweighs_what_is_old() {
        let now = start();
        let mut times = Times::new(now);
        (0..1000).for_each(|_| times.observe(Duration::from_secs(1), now));
        let later = now + HALF_LIFE * 6;
        (0..400).for_each(|_| times.observe(Duration::from_millis(5), later));
        let p95 = times.percentile(95, later).expect("many");
        assert!(p95 < Duration::from_millis(7), "{p95:?}");
    }

    proptest! {
        #[test]
        fn a_percentile_is_at_most_a_fifth_longer_than_the_true_one(
            mut micros in proptest::collection::vec(0..40_000_000_u64, 20..300),
            percent in 50..=99_u32,
        ) {
            let now = start();
            let mut times = Times::new(now);
            micros.iter().for_each(|time| times.observe(Duration::from_micros(*time), now));
            micros.sort_unstable();
            let rank = (micros.len() * percent as usize).div_ceil(100);
            let exact = Duration::from_micros(micros[rank - 1]).max(FIRST);
            let found = times.percentile(percent, now).expect("enough");
            prop_assert!(found.as_secs_f64() >= exact.as_secs_f64() * 0.999, "{found:?} {exact:?}");
            prop_assert!(found.as_secs_f64() <= exact.as_secs_f64() * FACTOR * 1.001, "{found:?} {exact:?}");
        }

        #[test]
        fn no_time_makes_it_panic(nanos: u64, wait in 0..1_000_000_u64) {
            let now = start();
            let mut times = Times::new(now);
            times.observe(Duration::from_nanos(nanos), now);
            times.observe(Duration::MAX, now + Duration::from_secs(wait));
            times.percentile(95, now);
        }
    }
}

//! How long a retry waits: a time drawn between nothing and a bound that doubles (full jitter).
//!
//! Requests that failed together come again apart. Where chance begins is given, so that a test knows it.

use std::time::Duration;

use parking_lot::Mutex;

use crate::types::chance::Chance;

/// Draws waits.
#[derive(Debug)]
pub(super) struct Jitter(Mutex<Chance>);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(Chance::seeded(seed)))
    }

    /// The wait before retry `number` (from 1): less than `backoff`, doubled for each retry before, and less than what
    /// is `left` until the deadline.
    pub(super) fn wait(&self, backoff: Duration, number: u32, left: Option<Duration>) -> Duration {
        let doubled = 2_u32.saturating_pow(number.saturating_sub(1));
        let bound = backoff.saturating_mul(doubled);
        left.map_or(bound, |left| bound.min(left))
            .mul_f64(self.0.lock().draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Duration = Duration::from_millis(25);

    #[test]
    fn waits_are_spread_over_the_whole_bound_which_doubles() {
        let jitter = Jitter::new(7);
        for (number, bound) in [(1, BACKOFF), (2, BACKOFF * 2), (3, BACKOFF * 4)] {
            let waits: Vec<_> = (0..1000).map(|_| jitter.wait(BACKOFF, number, None)).collect();
            assert!(waits.iter().all(|wait| *wait < bound));
            for tenth in 0..10 {
                let part = bound / 10;
                let here = waits
                    .iter()
                    .filter(|wait| (part * tenth..part * (tenth + 1)).contains(*wait));
                let count = here.count();
                assert!((50..200).contains(&count), "{count} of 1000 in tenth {tenth}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_waits_and_another_gives_others() {
        let waits = |seed| {
            let jitter = Jitter::new(seed);
            (0..10).map(|_| jitter.wait(BACKOFF, 1, None)).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    proptest! {
        #[test]
        fn no_wait_reaches_its_bound_or_the_deadline(
            seed: u64, number in 0..40_u32, millis in 0..20_000_u64, left in proptest::option::of(0..20_000_u64),
        ) {
            let left = left.map(Duration::from_millis);
            let backoff = Duration::from_millis(millis);
            let wait = Jitter::new(seed).wait(backoff, number, left);
            let zero_or_less = |bound: Duration| wait < bound || wait.is_zero();
            prop_assert!(zero_or_less(backoff.saturating_mul(2_u32.saturating_pow(number.max(1) - 1))));
            prop_assert!(left.is_none_or(zero_or_less));
        }
    }
}

//! Results of the last minute or so, counted in a ring of buckets: their number does not depend on the load.
//!
//! A result is counted for the window's length less at most one bucket.

use std::time::Duration;

use tokio::time::Instant;

/// Buckets in a window.
pub(super) const BUCKETS: usize = 30;

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    results: u32,
    failures: u32,
}

/// A sliding count.
#[derive(Debug)]
pub(super) struct Window {
    /// Time that one bucket stands for.
    width: Duration,
    buckets: [Bucket; BUCKETS],
    /// Since when the newest bucket is filled, and which it is; none before the first result.
    newest: Option<(Instant, usize)>,
}

impl Window {
    /// Nothing counted yet.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            width: (length / BUCKETS as u32).max(Duration::from_nanos(1)),
            buckets: [Bucket::default(); BUCKETS],
            newest: None,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS];
        self.newest = None;
    }

    /// Counts a result. The failures and the results in the window, this one among them.
    pub(super) fn add(&mut self, failed: bool, now: Instant) -> (u32, u32) {
        let at = self.turn(now);
        let bucket = &mut self.buckets[at];
        bucket.results = bucket.results.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(failed));
        self.buckets
            .iter()
            .fold((0, 0), |(failures, results): (u32, u32), bucket| {
                (
                    failures.saturating_add(bucket.failures),
                    results.saturating_add(bucket.results),
                )
            })
    }

    /// The bucket of `now`, with those emptied that have become too old. A time before the newest bucket's is
    /// taken for the newest: threads read the clock before they come here.
    fn turn(&mut self, now: Instant) -> usize {
        let Some((since, at)) = self.newest else {
            self.newest = Some((now, 0));
            return 0;
        };
        let passed = now.saturating_duration_since(since).as_nanos() / self.width.as_nanos();
        if passed >= BUCKETS as u128 {
            self.clear();
            return self.turn(now);
        }
        let passed = passed as usize;
        for step in 1..=passed {
            self.buckets[(at + step) % BUCKETS] = Bucket::default();
        }
        let at = (at + passed) % BUCKETS;
        self.newest = Some((since + self.width * passed as u32, at));
        at
    }
}

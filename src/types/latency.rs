//! Durations counted in buckets that grow with the value, so that any number of them takes the same memory.
//!
//! [`Histogram`] keeps all it was ever given, [`Recent`] what it was given lately. Pure: no clock, no lock.
//!
//! Error bound, of both: a quantile is never less than the exact one in whole microseconds, nor more than 1/64
//! (1.6 %) above it, up to 2^36 microseconds (19 hours), and never more than the largest value. Count, mean and the
//! largest value are exact. A histogram takes at most 16 KiB, and only as much as its largest value needs.

use std::time::Duration;

use tokio::time::Instant;

/// Buckets to a doubling, and its logarithm.
const STEPS: u64 = 64;
const STEP_BITS: u32 = 6;
/// Enough for 2^36 microseconds (19 hours); what is longer is in the last bucket.
const BUCKETS: usize = 31 * STEPS as usize;

/// How often which duration was seen.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// Up to that of the largest value.
    buckets: Vec<u64>,
    count: u64,
    sum: Duration,
    most: Duration,
}

impl Histogram {
    /// Adds one.
    pub fn record(&mut self, value: Duration) {
        let index = bucket(micros(value));
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.most = self.most.max(value);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        let buckets = self.buckets.len().max(other.buckets.len());
        self.buckets.resize(buckets, 0);
        for (mine, its) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += its;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.most = self.most.max(other.most);
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean, if there are any.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| self.sum.div_f64(self.count as f64))
    }

    /// The least duration that a share of `quantile` (0 to 1) does not exceed, if there are any.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        quantile_of([self, &Self::default()], quantile)
    }

    /// Forgets all, but not the memory.
    fn clear(&mut self) {
        self.buckets.clear();
        (self.count, self.sum, self.most) = (0, Duration::ZERO, Duration::ZERO);
    }
}

/// A histogram that forgets: what was recorded counts for one window at least and for less than two.
#[derive(Debug, Clone)]
pub struct Recent {
    window: Duration,
    /// When the window of `current` began; `None` before the first value.
    since: Option<Instant>,
    current: Histogram,
    /// Of the window before.
    previous: Histogram,
}

impl Recent {
    /// Empty. Values count for `window` to twice that.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            since: None,
            current: Histogram::default(),
            previous: Histogram::default(),
        }
    }

    /// Adds one that was seen `now`.
    pub fn record(&mut self, value: Duration, now: Instant) {
        let over = self.windows_over(now);
        if over > 0 {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.clear();
        }
        if over > 1 {
            self.previous.clear();
        }
        self.since = match self.since {
            Some(since) if over == 0 => Some(since),
            Some(since) if over == 1 => Some(since + self.window),
            _ => Some(now),
        };
        self.current.record(value);
    }

    /// How many count `now`.
    pub fn count(&self, now: Instant) -> u64 {
        self.at(now).into_iter().flatten().map(Histogram::count).sum()
    }

    /// The least duration that a share of `quantile` (0 to 1) of those that count `now` does not exceed, if there
    /// are any.
    pub fn quantile(&self, quantile: f64, now: Instant) -> Option<Duration> {
        let none = Histogram::default();
        quantile_of(self.at(now).map(|part| part.unwrap_or(&none)), quantile)
    }

    /// What counts `now`.
    fn at(&self, now: Instant) -> [Option<&Histogram>; 2] {
        match self.windows_over(now) {
            0 => [Some(&self.current), Some(&self.previous)],
            1 => [Some(&self.current), None],
            _ => [None, None],
        }
    }

    /// How many windows have ended since that of `current` began; 2 stands for more, too.
    fn windows_over(&self, now: Instant) -> u8 {
        let age = self
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        u8::from(age >= self.window) + u8::from(age >= self.window.saturating_mul(2))
    }
}

/// The quantile of two histograms as if they were one.
fn quantile_of(parts: [&Histogram; 2], quantile: f64) -> Option<Duration> {
    let [one, other] = parts;
    let count = one.count + other.count;
    let most = one.most.max(other.most);
    let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
    let in_bucket = |index: usize| {
        let of = |part: &Histogram| part.buckets.get(index).copied().unwrap_or_default();
        of(one) + of(other)
    };
    let mut seen = 0;
    (0..one.buckets.len().max(other.buckets.len()))
        .find(|index| {
            seen += in_bucket(*index);
            seen >= rank
        })
        .map(|index| Duration::from_micros(upper_bound(index)).min(most))
}

fn micros(value: Duration) -> u64 {
    u64::try_from(value.as_micros()).unwrap_or(u64::MAX)
}

/// Which bucket counts `micros`: one to a value below 64, then 64 to each doubling.
fn bucket(micros: u64) -> usize {
    let doubling = (u64::BITS - micros.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let index = u64::from(doubling) * STEPS + (micros >> doubling);
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The largest value that bucket `index` counts.
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let doubling = index / STEPS - 1;
    ((index - doubling * STEPS + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::time::Clock;

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_list(
            mut values in proptest::collection::vec(0_u64..1 << 33, 1..200),
            quantile in 0.0_f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            for value in &values {
                histogram.record(Duration::from_micros(*value));
            }
            values.sort_unstable();
            let rank = ((quantile * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let told = histogram.quantile(quantile).unwrap().as_micros() as u64;
            prop_assert!(told >= exact && told - exact <= exact / STEPS, "{told} for {exact}");
        }

        #[test]
        fn merged_histograms_are_as_one(
            left in proptest::collection::vec(0_u64..1 << 40, 0..50),
            right in proptest::collection::vec(0_u64..1 << 40, 1..50),
        ) {
            let of = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|value| histogram.record(Duration::from_micros(*value)));
                histogram
            };
            let mut merged = of(&left);
            merged.merge(&of(&right));
            let whole = of(&[left, right].concat());
            prop_assert_eq!(merged.quantile(0.5), whole.quantile(0.5));
            prop_assert_eq!(merged.mean(), whole.mean());
            prop_assert_eq!(merged.count(), whole.count());
        }
    }

    /// A value in milliseconds, and how long after the one before it was seen, in seconds.
    fn seen() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0_u64..100_000, 0_u64..40), 0..60)
    }

    proptest! {
        #[test]
        fn the_last_window_always_counts_and_nothing_older_than_two(seen in seen(), wait in 0_u64..80) {
            const WINDOW: u64 = 30;
            let start = Clock::System.now().monotonic;
            let mut recent = Recent::new(Duration::from_secs(WINDOW));
            let (mut at, mut all) = (0, Vec::new());
            for (value, later) in seen {
                at += later;
                recent.record(Duration::from_millis(value), start + Duration::from_secs(at));
                all.push((value, at));
            }
            let end = at + wait;
            let now = start + Duration::from_secs(end);
            let younger = |age: u64| -> Vec<u64> {
                all.iter().filter(|(_, at)| end - at < age).map(|(value, _)| *value).collect()
            };
            let (least, most) = (younger(WINDOW), younger(2 * WINDOW));
            let count = recent.count(now);
            prop_assert!(least.len() as u64 <= count && count <= most.len() as u64);
            prop_assert_eq!(recent.quantile(0.5, now).is_some(), count > 0);
            // Those that count are the last ones, and the quantile is theirs.
            let mut last: Vec<u64> = all.iter().rev().take(count as usize).map(|(value, _)| *value * 1000).collect();
            last.sort_unstable();
            if let Some(told) = recent.quantile(1.0, now) {
                prop_assert_eq!(told.as_micros() as u64, *last.last().unwrap());
                let (told, exact) = (recent.quantile(0.5, now).unwrap().as_micros() as u64, last[last.len().div_ceil(2) - 1]);
                prop_assert!(told >= exact && told - exact <= exact / STEPS, "{told} for {exact}");
            }
        }
    }

    #[test]
    fn what_was_seen_is_forgotten_after_one_to_two_windows() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let millis = Duration::from_millis;
        let mut recent = Recent::new(Duration::from_secs(30));
        assert_eq!((recent.count(start), recent.quantile(0.5, start)), (0, None));
        recent.record(millis(500), at(0));
        recent.record(millis(10), at(31));
        // When, how many count, and the largest of them.
        for (seconds, count, most) in [
            (31, 2, Some(500)),
            (59, 2, Some(500)),
            (60, 1, Some(10)),
            (89, 1, Some(10)),
            (90, 0, None),
            (9_000, 0, None),
        ] {
            assert_eq!(recent.count(at(seconds)), count, "{seconds}");
            assert_eq!(recent.quantile(1.0, at(seconds)), most.map(millis), "{seconds}");
        }
        recent.record(millis(7), at(200));
        assert_eq!(recent.count(at(200)), 1);
        // A reading from before, as of another thread, is of the same window.
        assert_eq!(recent.count(at(199)), 1);
    }

    #[test]
    fn the_longest_duration_is_counted_and_takes_no_more_memory_than_promised() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.buckets.len(), BUCKETS);
        assert!(histogram.quantile(0.5) >= Some(Duration::from_micros((1 << 36) - 1)));
    }

    #[test]
    fn an_empty_histogram_has_no_quantile_and_no_mean() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().mean(), None);
    }
}

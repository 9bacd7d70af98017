//! Latencies in buckets that grow with the value, so that a run of any length takes the same memory.
//!
//! A value is kept to within 1/64 (1.6 %); count, mean and the largest value are exact.

use std::time::Duration;

/// Buckets to a doubling, and its logarithm.
const STEPS: u64 = 64;
const STEP_BITS: u32 = 6;
/// Enough for 2^36 microseconds (19 hours); what is longer is in the last bucket.
const BUCKETS: usize = 31 * STEPS as usize;

/// How often which duration was seen.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: Duration,
    most: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            sum: Duration::ZERO,
            most: Duration::ZERO,
        }
    }
}

impl Histogram {
    /// Adds one.
    pub fn record(&mut self, value: Duration) {
        if let Some(bucket) = self.buckets.get_mut(bucket(micros(value))) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += value;
        self.most = self.most.max(value);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, its) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += its;
        }
        self.count += other.count;
        self.sum += other.sum;
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
        let rank = ((quantile * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        self.buckets
            .iter()
            .position(|count| {
                seen += count;
                seen >= rank
            })
            .map(|index| Duration::from_micros(upper_bound(index)).min(self.most))
    }
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

    #[test]
    fn an_empty_histogram_has_no_quantile_and_no_mean() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::default().mean(), None);
    }
}

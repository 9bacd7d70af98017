//! How much slower than usual a replica is, from the times to the first byte of its answers.
//!
//! [`Usual`] is the median per route over all replicas of an upstream: the time of a list of data sets says nothing
//! beside that of a list of messages, which takes a quarter of it, but both say something beside their own kind. (By
//! route class alone, replicas that were the same had scores from 0.02 to 0.9 under the routes of a real Dify, and lost
//! most requests to other zones.) [`PeakEwma`] is a replica's mean of these
//! ratios, weighted by time, that rises with the next answers and falls slowly: to send a request to a slow replica
//! costs more than to leave out one that has become fast again. What is not heard of goes back to usual, so that it
//! is tried again. In the simulator, where one slow answer alone counted in full, replicas that were the same seemed
//! to differ all the time, and balancing by that was worse than taking turns.

use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use super::within;
use crate::types::outcome::RouteClass;
use crate::types::request::FetchHead;

/// After this time with better answers, the mean has come down to them by 63 %.
const FALL: Duration = Duration::from_secs(1);
/// After this time without answers, 63 % of what was remarkable is forgotten.
const FORGET: Duration = Duration::from_secs(120);
/// One answer does not raise the mean by more than this factor: that a single answer is slow is chance, that the
/// next one is, too, is not.
const MOST_RISE: f64 = 1.3;
/// Nor is more than the rest of this forgotten for one that is better, however long nothing was heard.
const LEAST_KEPT: f64 = 0.9;
/// A greater ratio counts as this one: it would take too long to forget.
const MOST: f64 = 64.0;
/// One answer moves the median by this factor.
const STEP: f64 = 1.05;
/// Seconds. A shorter time counts as this one: between answers that take less, chance makes more difference than
/// replicas do.
const SHORTEST: f64 = 0.005;

/// The share that is left after `passed` of what fades with `decay`.
pub(super) fn left(passed: Duration, decay: Duration) -> f64 {
    (-passed.as_secs_f64() / decay.as_secs_f64()).exp()
}

/// The peak-sensitive mean of a replica's times, relative to the usual.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PeakEwma(Option<(f64, Instant)>);

impl PeakEwma {
    /// Takes one answer that took `ratio` times the usual into account. NaN counts as 0.
    pub fn observe(&mut self, ratio: f64, now: Instant) {
        let ratio = within(ratio, MOST);
        let before = self.value(now).unwrap_or(1.0);
        let value = if ratio > before {
            ratio.min(MOST_RISE * before.max(1.0))
        } else {
            let passed = self
                .0
                .map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(at));
            ratio + (before - ratio) * left(passed, FALL).max(LEAST_KEPT)
        };
        self.0 = Some((value, now));
    }

    /// The mean at `now`; `None` before the first answer.
    pub fn value(&self, now: Instant) -> Option<f64> {
        let (value, at) = self.0?;
        Some(1.0 + (value - 1.0) * left(now.saturating_duration_since(at), FORGET))
    }
}

/// What is asked for, as far as that says how long it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its class.
    pub class: RouteClass,
    /// Its template, of which there are as many as rows in the table of routes.
    pub template: &'static str,
}

impl Route {
    /// That of a fetch.
    pub fn of(fetch: &FetchHead) -> Self {
        Self {
            class: fetch.class,
            template: fetch.template,
        }
    }
}

/// The usual time to the first byte by route, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Usual(AHashMap<&'static str, f64>);

impl Usual {
    /// What `time` is beside the usual of `route`, which takes it into account then. `None` for classes whose
    /// times tell of the request rather than of the replica: a generation, a file, anything.
    pub fn ratio(&mut self, route: Route, time: Duration) -> Option<f64> {
        use RouteClass::*;
        if !matches!(route.class, Metadata | Listing | Auth | TaskStatus | Health) {
            return None;
        }
        let time = time.as_secs_f64().max(SHORTEST);
        let usual = self.0.entry(route.template).or_insert(time);
        let ratio = time / *usual;
        // The median is where as many steps go up as down.
        *usual *= if ratio > 1.0 { STEP } else { 1.0 / STEP };
        Some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;
    use proptest::prelude::*;

    fn of(class: RouteClass) -> Route {
        let template = class.as_str();
        Route { class, template }
    }

    #[test]
    fn peaks_count_as_soon_as_there_are_some_and_are_forgotten_slowly() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut mean = PeakEwma::default();
        assert_eq!(mean.value(at(0)), None);
        mean.observe(1.0, at(0));
        mean.observe(5.0, at(0));
        assert_eq!(mean.value(at(0)), Some(MOST_RISE), "one alone may be chance");
        for _ in 0..6 {
            mean.observe(5.0, at(0));
        }
        assert_eq!(mean.value(at(0)), Some(5.0));
        mean.observe(1.0, at(0));
        assert_eq!(mean.value(at(0)), Some(5.0), "no time has passed");
        assert!(mean.value(at(60)).unwrap() > 3.0, "nothing was heard");
        assert!((mean.value(at(600)).unwrap() - 1.0).abs() < 0.1);
        mean.observe(1.0, at(60));
        assert!(mean.value(at(60)).unwrap() > 2.8, "one alone may be chance");
        for n in 1..=50 {
            mean.observe(1.0, at(60) + n * FALL / 10);
        }
        assert!(mean.value(at(65)).unwrap() < 1.1);
    }

    #[test]
    fn answers_of_less_than_some_milliseconds_are_alike() {
        let mut usual = Usual::default();
        for micros in [300, 50, 4000, 800].into_iter().cycle().take(100) {
            let ratio = usual
                .ratio(of(RouteClass::Listing), Duration::from_micros(micros))
                .unwrap();
            assert!((ratio - 1.0).abs() < 0.1, "{micros}: {ratio}");
        }
        let slow = usual
            .ratio(of(RouteClass::Listing), Duration::from_millis(20))
            .unwrap();
        assert!((3.5..4.5).contains(&slow), "{slow}");
    }

    #[test]
    fn a_route_that_takes_longer_than_others_of_its_class_is_not_slow() {
        let mut usual = Usual::default();
        for _ in 0..50 {
            for (template, time) in [("/v1/datasets", 120), ("/v1/messages", 30)] {
                let route = Route {
                    class: RouteClass::Listing,
                    template,
                };
                let ratio = usual.ratio(route, Duration::from_millis(time)).unwrap();
                assert!((0.9..1.1).contains(&ratio), "{template}: {ratio}");
            }
        }
    }

    #[test]
    fn the_usual_time_of_a_route_is_its_median_and_one_slow_replica_of_four_does_not_move_it() {
        let mut usual = Usual::default();
        let mut last = [0.0; 4];
        for n in 0..4000 {
            let time = if n % 4 == 3 { 500 } else { 95 + n % 11 };
            let time = Duration::from_millis(time as u64);
            last[n % 4] = usual.ratio(of(RouteClass::Listing), time).unwrap();
            usual.ratio(of(RouteClass::Metadata), time / 50).unwrap();
        }
        assert!(
            last[..3].iter().all(|ratio| (0.75..1.3).contains(ratio)),
            "{last:?}"
        );
        assert!((4.0..6.0).contains(&last[3]), "{last:?}");
        assert_eq!(
            usual.ratio(of(RouteClass::Generation), Duration::from_secs(60)),
            None
        );
        assert_eq!(usual.ratio(of(RouteClass::Auth), Duration::ZERO), Some(1.0));
    }

    proptest! {
        #[test]
        fn the_mean_stays_between_the_least_and_the_greatest(
            samples in prop::collection::vec((any::<f64>(), 0u64..60_000), 1..50),
        ) {
            let mut now = Clock::System.now().monotonic;
            let (mut mean, mut least, mut most) = (PeakEwma::default(), 1.0f64, 1.0f64);
            for (ratio, after) in samples {
                now += Duration::from_millis(after);
                mean.observe(ratio, now);
                least = least.min(ratio.max(0.0));
                most = most.max(ratio.max(0.0)).min(MOST);
                let value = mean.value(now).unwrap();
                prop_assert!(value >= least - 1e-9 && value <= most + 1e-9, "{} {} {}", least, value, most);
                prop_assert!(value >= within(ratio, MOST_RISE) - 1e-9);
            }
        }
    }
}

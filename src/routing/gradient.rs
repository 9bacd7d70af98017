//! How many requests a replica can have in flight, found by asking: a gradient limit, as a pure state machine.
//!
//! A server with more requests than workers makes them wait, and the time to the first byte grows by that. So the times
//! of a window are set beside the best that is known of their route class (a minimum that is slowly forgotten), and the
//! limit follows the quotient:
//!
//! ```text
//! gradient = clamp(TOLERANCE / median(time / best), 0.5, 1)
//! limit   <- smoothed(limit * gradient + sqrt(limit) / 2)
//! ```
//!
//! Without queueing the gradient is 1 and the limit grows by the square root, its room for trying; with it the limit
//! shrinks until the times are near the best again. It grows only while it is used: what nobody wants need not be known.
//! (After Netflix's concurrency limits, "Performance Under Load", 2018.) Times of generations and files say nothing
//! about a queue, so they do not count; a time-out counts as a very long time.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::outcome::RouteClass;

/// The limit until something is known: what a stock dify-api has.
pub(super) const FIRST: usize = 10;
/// The least limit: with one alone there is nothing to compare.
const LEAST: f64 = 2.0;
/// Times up to so many times the best are no sign of a queue.
const TOLERANCE: f64 = 1.6;
/// A window is at least as long, and
const WINDOW: Duration = Duration::from_secs(1);
/// has at least as many times, and at most
const FEWEST: usize = 10;
/// as many; others are left out.
const MOST: usize = 256;
/// Share of a new limit that counts at once.
const SMOOTHING: f64 = 0.3;
/// The best time doubles in this time when nothing better is seen: a server that was changed for a slower one is not
/// taken for a busy one for ever.
const FORGET: Duration = Duration::from_secs(1200);
/// What a time-out counts as, beside the best time.
const TIMED_OUT: f64 = 16.0;

/// The limit of one replica.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    limit: f64,
    most: usize,
    best: [Option<Best>; RouteClass::ALL.len()],
    ratios: Vec<f64>,
    busiest: usize,
    since: Option<Instant>,
}

/// The best time of a route class, seconds.
#[derive(Debug, Clone, Copy)]
struct Best {
    time: f64,
    at: Instant,
}

impl Gradient {
    /// A limit that is never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: FIRST.min(most) as f64,
            most,
            best: [None; RouteClass::ALL.len()],
            ratios: Vec::new(),
            busiest: 0,
            since: None,
        }
    }

    /// The limit.
    pub(super) fn limit(&self) -> usize {
        (self.limit as usize).clamp(1, self.most)
    }

    /// Takes an answer into account that took `time` to the first byte (`None`: it timed out) while `in_flight` requests
    /// were, it included.
    pub(super) fn observe(
        &mut self,
        class: RouteClass,
        time: Option<Duration>,
        in_flight: usize,
        now: Instant,
    ) {
        use RouteClass::*;
        if !matches!(class, Metadata | Listing | Auth | TaskStatus) {
            return;
        }
        let ratio = match time {
            Some(time) => self.ratio(class, time, now),
            None => TIMED_OUT,
        };
        if self.ratios.len() < MOST {
            self.ratios.push(ratio);
        }
        self.busiest = self.busiest.max(in_flight);
        let since = *self.since.get_or_insert(now);
        if self.ratios.len() >= FEWEST && now.saturating_duration_since(since) >= WINDOW {
            self.end_window();
            self.since = Some(now);
        }
    }

    fn ratio(&mut self, class: RouteClass, time: Duration, now: Instant) -> f64 {
        let time = time.as_secs_f64().max(1e-6);
        let best = self.best[class as usize].get_or_insert(Best { time, at: now });
        let passed = now.saturating_duration_since(best.at).as_secs_f64() / FORGET.as_secs_f64();
        let known = best.time * passed.exp2();
        *best = Best {
            time: known.min(time),
            at: now,
        };
        (time / known).min(TIMED_OUT)
    }

    fn end_window(&mut self) {
        let middle = self.ratios.len() / 2;
        let (_, median, _) = self.ratios.select_nth_unstable_by(middle, f64::total_cmp);
        let gradient = (TOLERANCE / *median).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt() / 2.0;
        let is_used = self.busiest as f64 >= self.limit / 2.0;
        if wanted < self.limit || is_used {
            self.limit += SMOOTHING * (wanted - self.limit);
            self.limit = self.limit.clamp(LEAST.min(self.most as f64), self.most as f64);
        }
        self.ratios.clear();
        self.busiest = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;
    use proptest::prelude::*;

    /// A server with so many workers, each answer of which takes 50 ms; `clients` ask one thing after the other, and
    /// the limit is asked who may. Returns the limits, one each second.
    fn serve(
        gradient: &mut Gradient,
        workers: usize,
        clients: usize,
        seconds: u64,
        start: Instant,
    ) -> Vec<usize> {
        const STEP: Duration = Duration::from_millis(5);
        let mut limits = Vec::new();
        // When each that is at the server came, and when its worker ends.
        let mut serving: Vec<(u64, u64)> = Vec::new();
        let mut backlog: std::collections::VecDeque<u64> = Default::default();
        for tick in 0..seconds * 200 {
            let now = start + STEP * tick as u32;
            let in_flight = serving.len() + backlog.len();
            let (done, left): (Vec<_>, Vec<_>) = serving.iter().partition(|(_, ends)| *ends <= tick);
            serving = left;
            for (came, _) in done {
                let class = [RouteClass::Listing, RouteClass::Metadata][(tick % 2) as usize];
                gradient.observe(class, Some(STEP * (tick - came) as u32), in_flight, now);
            }
            while serving.len() + backlog.len() < gradient.limit().min(clients) {
                backlog.push_back(tick);
            }
            while serving.len() < workers {
                let Some(came) = backlog.pop_front() else { break };
                // 40 to 60 ms, by a fixed pattern.
                serving.push((came, tick + 8 + (tick * 7 + serving.len() as u64) % 5));
            }
            if tick % 200 == 199 {
                limits.push(gradient.limit());
            }
        }
        limits
    }

    fn settled(limits: &[usize]) -> (usize, usize) {
        let last = &limits[limits.len() - 20..];
        (*last.iter().min().unwrap(), *last.iter().max().unwrap())
    }

    #[test]
    fn the_workers_of_a_server_are_found_with_less_than_as_many_again_waiting() {
        let start = Clock::System.now().monotonic;
        for workers in [5, 10, 30] {
            let mut gradient = Gradient::new(200);
            let (least, most) = settled(&serve(&mut gradient, workers, 150, 120, start));
            assert!(
                least >= workers && most <= 2 * workers,
                "{workers}: {least} to {most}"
            );
        }
    }

    #[test]
    fn a_server_that_loses_workers_is_noticed() {
        let start = Clock::System.now().monotonic;
        let mut gradient = Gradient::new(200);
        serve(&mut gradient, 30, 150, 60, start);
        let limits = serve(&mut gradient, 10, 150, 60, start + Duration::from_secs(60));
        let (least, most) = settled(&limits);
        assert!(least >= 10 && most <= 20, "{least} to {most}: {limits:?}");
    }

    #[test]
    fn a_limit_that_nobody_reaches_does_not_grow() {
        let start = Clock::System.now().monotonic;
        let mut gradient = Gradient::new(200);
        assert_eq!(serve(&mut gradient, 100, 3, 60, start).last(), Some(&FIRST));
    }

    #[test]
    fn time_outs_bring_the_limit_down_and_streams_do_not() {
        let start = Clock::System.now().monotonic;
        let mut gradient = Gradient::new(100);
        for second in 0..300 {
            let now = start + Duration::from_millis(100 * second);
            gradient.observe(RouteClass::Generation, Some(Duration::from_secs(second)), 10, now);
        }
        assert_eq!(gradient.limit(), FIRST);
        for second in 0..300 {
            let now = start + Duration::from_millis(100 * second);
            gradient.observe(RouteClass::Listing, None, 10, now);
        }
        assert!(gradient.limit() <= 3, "{}", gradient.limit());
    }

    proptest! {
        #[test]
        fn a_limit_stays_between_one_and_the_most(
            most in 1usize..300,
            times in prop::collection::vec((prop::option::of(0u64..100_000), 0usize..300, 0u64..3000), 0..400),
        ) {
            let mut now = Clock::System.now().monotonic;
            let mut gradient = Gradient::new(most);
            for (time, in_flight, pause) in times {
                now += Duration::from_millis(pause);
                gradient.observe(RouteClass::Listing, time.map(Duration::from_millis), in_flight, now);
                prop_assert!((1..=most).contains(&gradient.limit()));
            }
        }
    }
}

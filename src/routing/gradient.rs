//! How many requests a replica can have in flight, found by asking: a gradient limit, as a pure state machine.
//!
//! A server with more requests than workers makes them wait, and the time to the first byte grows by that. So the times
//! of a window are set beside those that the same routes take in *calm*, and the limit follows the quotient:
//!
//! ```text
//! gradient = clamp(TOLERANCE / median(time / calm), 0.5, 1)
//! limit   <- smoothed(limit * gradient + sqrt(limit) / 2)
//! ```
//!
//! Without queueing the gradient is 1 and the limit grows by the square root, its room for trying; with it the limit
//! shrinks until the times are near those in calm again. It grows only while it is used: what nobody wants need not be
//! known. (After Netflix's concurrency limits, "Performance Under Load", 2018.) Times of generations and files say
//! nothing about a queue, so they do not count; a time-out counts as a very long time.
//!
//! It is calm while few of the slots are in use; where that does not come by itself, only half of the limit is given out
//! for a second every three minutes, and at first. What a route takes in calm is a median, as is what it is compared with:
//! beside the *best* time of a route class, as it once was, the times of any real server are so long that the limit
//! fell to its least.

use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use super::health::ewma::Route;

/// The limit until something is known: what a stock dify-api has.
pub(super) const FIRST: usize = 10;
/// The least limit: with one alone there is nothing to compare.
const LEAST: f64 = 2.0;
/// Times up to so many times those in calm are no sign of a queue.
const TOLERANCE: f64 = 1.4;
/// A window is at least as long, and
const WINDOW: Duration = Duration::from_secs(1);
/// has at least as many times, and at most
const FEWEST: usize = 10;
/// as many; others are left out.
const MOST: usize = 256;
/// Share of a new limit that counts at once.
const SMOOTHING: f64 = 0.3;
/// What a time-out counts as, beside the time in calm.
const TIMED_OUT: f64 = 16.0;
/// The part of the limit up to which it is calm.
const CALM: f64 = 0.25;
/// The part of the limit that is given out to see what it is like in calm.
const DIP: f64 = 0.5;
/// For no longer than this.
const LONGEST_DIP: Duration = Duration::from_secs(5);
/// What a route takes in calm is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(180);
/// One time moves the median in calm by this part, the first ones by more.
const STEP: f64 = 0.02;
/// So many times in calm say what a route takes.
const KNOWN: u32 = 3;

/// The limit of one replica.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    limit: f64,
    most: usize,
    /// By the template of the route.
    calm: AHashMap<&'static str, Calm>,
    /// Whether only a part of the limit is given out.
    dips: bool,
    ratios: Vec<f64>,
    busiest: usize,
    since: Option<Instant>,
    /// When it was calm last.
    calm_at: Option<Instant>,
}

/// What a route takes while few are in flight.
#[derive(Debug, Clone, Copy)]
struct Calm {
    /// The median, in seconds.
    time: f64,
    seen: u32,
}

impl Calm {
    fn learn(&mut self, time: f64) {
        self.seen = self.seen.saturating_add(1);
        // The first ones may be far from the median.
        let step = 1.0 + STEP.max(0.5 / f64::from(self.seen));
        self.time *= if time > self.time { step } else { 1.0 / step };
    }
}

impl Gradient {
    /// A limit that is never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: FIRST.min(most) as f64,
            most,
            calm: AHashMap::new(),
            dips: false,
            ratios: Vec::new(),
            busiest: 0,
            since: None,
            calm_at: None,
        }
    }

    /// The limit.
    pub(super) fn limit(&self) -> usize {
        let given = if self.dips { self.limit * DIP } else { self.limit };
        (given as usize).clamp(1, self.most)
    }

    /// Takes an answer into account that took `time` to the first byte (`None`: it timed out) while `in_flight` requests
    /// were, it included.
    pub(super) fn observe(&mut self, route: Route, time: Option<Duration>, in_flight: usize, now: Instant) {
        use crate::types::outcome::RouteClass::*;
        let passed = |since: Instant| now.saturating_duration_since(since);
        // Whatever there is to learn, others must not wait for it.
        self.dips &= self.since.is_none_or(|since| passed(since) < LONGEST_DIP);
        if !matches!(route.class, Metadata | Listing | Auth | TaskStatus) {
            return;
        }
        self.dips |= self.since.is_none();
        let since = *self.since.get_or_insert(now);
        let ratio = match time {
            Some(time) => self.ratio(route.template, time.as_secs_f64().max(1e-6), in_flight, now),
            None => Some(TIMED_OUT),
        };
        if let Some(ratio) = ratio.filter(|_| self.ratios.len() < MOST) {
            self.ratios.push(ratio);
        }
        self.busiest = self.busiest.max(in_flight);
        if self.ratios.len() >= FEWEST && passed(since) >= WINDOW {
            self.end_window(now);
            self.since = Some(now);
        }
    }

    /// `time` beside what `template` takes in calm, if that is known.
    fn ratio(&mut self, template: &'static str, time: f64, in_flight: usize, now: Instant) -> Option<f64> {
        let few = self.limit * if self.dips { DIP } else { CALM };
        let is_calm = in_flight <= (few as usize).max(1);
        let calm = self.calm.entry(template).or_insert(Calm { time, seen: 0 });
        if is_calm {
            calm.learn(time);
            self.calm_at = Some(now);
        }
        (calm.seen >= KNOWN).then(|| (time / calm.time).min(TIMED_OUT))
    }

    fn end_window(&mut self, now: Instant) {
        let middle = self.ratios.len() / 2;
        let (_, median, _) = self.ratios.select_nth_unstable_by(middle, f64::total_cmp);
        let gradient = (TOLERANCE / *median).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt() / 2.0;
        let is_used = self.busiest as f64 >= self.limit / 2.0 && !self.dips;
        if wanted < self.limit || is_used {
            self.limit += SMOOTHING * (wanted - self.limit);
            self.limit = self.limit.clamp(LEAST.min(self.most as f64), self.most as f64);
        }
        self.ratios.clear();
        self.busiest = 0;
        let last = *self.calm_at.get_or_insert(now);
        self.dips = !self.dips && now.saturating_duration_since(last) >= LOOK_AGAIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::chance::Chance;
    use crate::types::outcome::RouteClass;
    use crate::types::time::Clock;
    use proptest::prelude::*;

    fn route(class: RouteClass) -> Route {
        let template = class.as_str();
        Route { class, template }
    }

    /// A server with so many workers, each answer of which takes 50 ms; `clients` ask one thing after the other, and
    /// the limit is asked who may. Returns the limits, one each second.
    fn serve(
        gradient: &mut Gradient,
        workers: usize,
        clients: usize,
        seconds: u64,
        start: Instant,
    ) -> Vec<usize> {
        // 40 to 60 ms, by a fixed pattern.
        let takes = |tick: u64, busy: u64, _: bool| 8 + (tick * 7 + busy) % 5;
        serve_with(gradient, (workers, clients), seconds, start, takes)
    }

    /// The same with a server that is told how many steps an answer takes, one of each of two routes in turn.
    fn serve_with(
        gradient: &mut Gradient,
        (workers, clients): (usize, usize),
        seconds: u64,
        start: Instant,
        mut takes: impl FnMut(u64, u64, bool) -> u64,
    ) -> Vec<usize> {
        const STEP: Duration = Duration::from_millis(5);
        let mut limits = Vec::new();
        // When each that is at the server came, when its worker ends, and whether it is of the second route.
        let mut serving: Vec<(u64, u64, bool)> = Vec::new();
        let mut backlog: std::collections::VecDeque<u64> = Default::default();
        let mut second = false;
        for tick in 0..seconds * 200 {
            let now = start + STEP * tick as u32;
            let in_flight = serving.len() + backlog.len();
            let (done, left): (Vec<_>, Vec<_>) = serving.iter().partition(|(_, ends, _)| *ends <= tick);
            serving = left;
            for (came, _, second) in done {
                let class = [RouteClass::Listing, RouteClass::Metadata][usize::from(second)];
                gradient.observe(route(class), Some(STEP * (tick - came) as u32), in_flight, now);
            }
            while serving.len() + backlog.len() < gradient.limit().min(clients) {
                backlog.push_back(tick);
            }
            while serving.len() < workers {
                let Some(came) = backlog.pop_front() else { break };
                second = !second;
                serving.push((came, tick + takes(tick, serving.len() as u64, second), second));
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
    fn times_that_vary_by_chance_and_by_route_are_no_queue() {
        let start = Clock::System.now().monotonic;
        let mut chance = Chance::seeded(3);
        // 30 ms or four times as much, in the middle, with a third that is beyond half or twice of that.
        let mut takes = |_: u64, _: u64, second: bool| {
            let normal = (0..12).map(|_| chance.draw()).sum::<f64>() - 6.0;
            let middle = if second { 24.0 } else { 6.0 };
            (middle * (0.7 * normal).exp()).ceil() as u64
        };
        let mut gradient = Gradient::new(200);
        let limits = serve_with(&mut gradient, (1000, 100), 600, start, &mut takes);
        let (least, _) = settled(&limits);
        assert!(least >= 90, "{least}: {limits:?}");
        let later = start + Duration::from_secs(600);
        let (least, most) = settled(&serve_with(&mut gradient, (20, 100), 120, later, &mut takes));
        assert!(least >= 15 && most <= 40, "{least} to {most}");
    }

    #[test]
    fn what_an_answer_takes_in_calm_is_looked_at_again_every_three_minutes() {
        let start = Clock::System.now().monotonic;
        let mut gradient = Gradient::new(200);
        let limits = serve(&mut gradient, 10, 150, 1000, start);
        let dips = limits[60..].iter().filter(|limit| **limit < 10).count();
        assert!((4..=12).contains(&dips), "{dips}: {limits:?}");
        let (least, most) = settled(&limits);
        assert!(
            least >= 10 && most <= 20,
            "nor does that drift: {least} to {most}"
        );
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
            gradient.observe(
                route(RouteClass::Generation),
                Some(Duration::from_secs(second)),
                10,
                now,
            );
        }
        assert_eq!(gradient.limit(), FIRST);
        for second in 0..300 {
            let now = start + Duration::from_millis(100 * second);
            gradient.observe(route(RouteClass::Listing), None, 10, now);
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
                gradient.observe(route(RouteClass::Listing), time.map(Duration::from_millis), in_flight, now);
                prop_assert!((1..=most).contains(&gradient.limit()));
            }
        }
    }
}

//! The state machine by table, and against what must hold for any sequence of events.

use proptest::prelude::*;

use super::Verdict::{Failure, Success, Unknown};
use super::window::BUCKETS;
use super::*;
use crate::types::time::Clock;
use crate::types::units::{Ratio, Span};

fn config(volume: u32, threshold: f64) -> BreakerConfig {
    BreakerConfig {
        request_volume: volume,
        failure_threshold: Ratio(threshold),
        ..BreakerConfig::default()
    }
}

/// A breaker with a clock of its own.
struct Rig {
    breaker: Breaker,
    now: Instant,
}

impl Rig {
    fn new(config: &BreakerConfig) -> Self {
        Self {
            breaker: Breaker::new(config),
            now: Clock::System.now().monotonic,
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now += by;
    }

    fn enter(&mut self) -> Option<Ticket> {
        let admits = self.breaker.admits(self.now);
        self.breaker.advance(self.now);
        let ticket = self.breaker.enter(self.now);
        assert_eq!(ticket.is_some(), admits, "{:?}", self.breaker);
        ticket
    }

    fn settle(&mut self, ticket: Ticket, verdict: Verdict) -> Option<Change> {
        self.breaker.settle(ticket, verdict, self.now)
    }

    /// One request that ends at once. The state after it.
    fn request(&mut self, verdict: Verdict) -> BreakerState {
        let ticket = self.enter().expect("it is let in");
        self.settle(ticket, verdict);
        self.breaker.state()
    }

    fn trip(&mut self) {
        while self.breaker.state() == BreakerState::Closed {
            self.request(Failure);
        }
    }

    fn sleep_over(&mut self) {
        let sleep = self.breaker.half_open_in(self.now);
        self.pass(sleep);
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_opens_with_the_volume_reached_and_enough_failures_among_it() {
    // Volume, threshold, what happens (successes, then failures, then successes), whether it opens by it.
    let table = [
        (20, 0.5, (10, 10, 0), true),
        (20, 0.5, (11, 9, 0), false),
        (20, 0.5, (0, 19, 0), false),
        (20, 0.5, (0, 20, 0), true),
        // The volume is reached by a success.
        (20, 0.5, (0, 19, 1), true),
        (20, 0.5, (15, 14, 0), false),
        (20, 0.5, (15, 15, 0), true),
        (1, 1.0, (0, 1, 0), true),
        (10, 1.0, (1, 100, 0), false),
        // A share that a fraction of two does not say exactly.
        (100, 0.07, (93, 7, 0), true),
        (100, 0.07, (94, 6, 0), false),
        (100, 0.29, (71, 29, 0), true),
    ];
    for (volume, threshold, (first, failures, last), opens) in table {
        let mut rig = Rig::new(&config(volume, threshold));
        let all = [(Success, first), (Failure, failures), (Success, last)];
        for (verdict, times) in all {
            for _ in 0..times {
                assert_eq!(rig.breaker.state(), BreakerState::Closed);
                rig.request(verdict);
            }
        }
        let expected = if opens {
            BreakerState::Open
        } else {
            BreakerState::Closed
        };
        assert_eq!(rig.breaker.state(), expected, "{volume} {threshold} {all:?}");
    }
}

#[test]
fn results_older_than_the_window_do_not_count() {
    let mut rig = Rig::new(&config(20, 0.5));
    for _ in 0..19 {
        rig.request(Failure);
    }
    rig.pass(60 * SECOND);
    assert_eq!(rig.request(Failure), BreakerState::Closed);
    // Within the window all do.
    rig.pass(50 * SECOND);
    for _ in 0..18 {
        assert_eq!(rig.request(Failure), BreakerState::Closed);
    }
    assert_eq!(rig.request(Failure), BreakerState::Open);
}

#[test]
fn what_tells_nothing_of_the_replica_counts_for_nothing() {
    let mut rig = Rig::new(&config(20, 0.5));
    for _ in 0..100 {
        rig.request(Unknown);
    }
    for _ in 0..19 {
        assert_eq!(rig.request(Failure), BreakerState::Closed);
    }
    assert_eq!(rig.request(Failure), BreakerState::Open);
}

#[test]
fn after_its_sleep_it_lets_one_in_at_a_time_and_closes_after_three() {
    let mut rig = Rig::new(&config(20, 0.5));
    rig.trip();
    assert_eq!(rig.breaker.half_open_in(rig.now), 30 * SECOND);
    rig.pass(30 * SECOND - Duration::from_millis(1));
    assert_eq!((rig.enter(), rig.breaker.state()), (None, BreakerState::Open));
    rig.pass(Duration::from_millis(1));
    for round in 1..=3 {
        let trial = rig.enter().unwrap();
        assert_eq!((rig.enter(), rig.breaker.state()), (None, BreakerState::HalfOpen));
        let change = rig.settle(trial, Success);
        assert_eq!(change.is_some(), round == 3);
    }
    assert_eq!(rig.breaker.state(), BreakerState::Closed);
    // What was before is forgotten.
    for _ in 0..19 {
        assert_eq!(rig.request(Failure), BreakerState::Closed);
    }
    assert_eq!(rig.request(Failure), BreakerState::Open);
}

#[test]
fn a_failed_trial_doubles_the_sleep_up_to_five_minutes_and_closing_resets_it() {
    let mut rig = Rig::new(&config(20, 0.5));
    rig.trip();
    for seconds in [30, 60, 120, 240, 300, 300] {
        assert_eq!(rig.breaker.half_open_in(rig.now), seconds * SECOND);
        rig.sleep_over();
        // Successes before it make no difference.
        rig.request(Success);
        assert_eq!(rig.request(Failure), BreakerState::Open);
    }
    rig.sleep_over();
    for _ in 0..3 {
        rig.request(Success);
    }
    assert_eq!(rig.breaker.state(), BreakerState::Closed);
    rig.trip();
    assert_eq!(rig.breaker.half_open_in(rig.now), 30 * SECOND);
}

#[test]
fn a_change_says_what_led_to_it() {
    let mut rig = Rig::new(&config(4, 0.5));
    for verdict in [Success, Success, Failure] {
        rig.request(verdict);
    }
    let ticket = rig.enter().unwrap();
    let change = rig.settle(ticket, Failure).unwrap();
    assert_eq!(
        (change.to, change.failures, change.results, change.sleep),
        (BreakerState::Open, 2, 4, 30 * SECOND)
    );
    rig.sleep_over();
    let woken = rig.breaker.advance(rig.now).unwrap();
    assert_eq!((woken.to, woken.sleep), (BreakerState::HalfOpen, Duration::ZERO));
    assert_eq!(rig.breaker.advance(rig.now), None);
}

#[test]
fn results_of_requests_from_before_a_change_do_not_count_after_it() {
    let mut rig = Rig::new(&config(20, 0.5));
    let early: Vec<_> = (0..40).map(|_| rig.enter().unwrap()).collect();
    rig.trip();
    for ticket in &early[..10] {
        assert_eq!(rig.settle(*ticket, Success), None);
    }
    rig.sleep_over();
    let trial = rig.enter().unwrap();
    for ticket in &early[10..20] {
        assert_eq!(rig.settle(*ticket, Failure), None);
        assert_eq!(rig.settle(*ticket, Success), None);
    }
    // Nor do they give a place back that they never had.
    assert_eq!(rig.enter(), None);
    rig.settle(trial, Success);
    rig.request(Success);
    rig.request(Success);
    assert_eq!(rig.breaker.state(), BreakerState::Closed);
    for ticket in &early[20..] {
        assert_eq!(rig.settle(*ticket, Failure), None);
    }
    assert_eq!(rig.breaker.state(), BreakerState::Closed);
}

#[test]
fn a_trial_without_verdict_gives_its_place_back() {
    let mut rig = Rig::new(&config(20, 0.5));
    rig.trip();
    rig.sleep_over();
    for _ in 0..10 {
        let trial = rig.enter().unwrap();
        assert_eq!(rig.enter(), None);
        assert_eq!(rig.settle(trial, Unknown), None);
    }
    assert_eq!(rig.breaker.state(), BreakerState::HalfOpen);
}

#[test]
fn a_trial_that_goes_on_for_a_whole_sleep_holds_up_no_other_and_still_counts() {
    let mut rig = Rig::new(&config(20, 0.5));
    rig.trip();
    rig.sleep_over();
    let stream = rig.enter().unwrap();
    rig.pass(30 * SECOND - Duration::from_millis(1));
    assert_eq!(rig.enter(), None);
    rig.pass(Duration::from_millis(1));
    let second = rig.enter().unwrap();
    assert_eq!(rig.enter(), None);
    rig.settle(second, Success);
    assert_eq!(
        rig.settle(stream, Failure).map(|c| c.to),
        Some(BreakerState::Open)
    );
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Enter,
    Settle(prop::sample::Index, Verdict),
    Pass(u64),
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop::sample::select(vec![Success, Failure, Failure, Unknown])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Enter),
        4 => (any::<prop::sample::Index>(), verdicts()).prop_map(|(at, verdict)| Step::Settle(at, verdict)),
        1 => (0u64..45_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn it_opens_exactly_when_volume_and_threshold_are_reached_within_the_window(
        volume in 1u32..30, percent in 1u32..=100, results in prop::collection::vec((verdicts(), 0u64..150), 0..300),
    ) {
        let mut rig = Rig::new(&config(volume, f64::from(percent) / 100.0));
        let (mut count, mut failures) = (0, 0);
        for (verdict, pause) in results {
            rig.pass(Duration::from_millis(pause));
            let state = rig.request(verdict);
            count += u32::from(verdict != Unknown);
            failures += u32::from(verdict == Failure);
            let opens = verdict != Unknown && count >= volume && failures * 100 >= percent * count;
            prop_assert_eq!(state == BreakerState::Open, opens, "{} of {}", failures, count);
            if opens {
                break;
            }
        }
    }

    #[test]
    fn the_window_counts_all_that_is_younger_and_nothing_that_is_older(
        length in 1_000u64..100_000, results in prop::collection::vec((any::<bool>(), 0u64..20_000), 1..200),
    ) {
        let length = Duration::from_millis(length);
        let bucket = length / BUCKETS as u32;
        let mut window = Window::new(length);
        let mut now = Clock::System.now().monotonic;
        let mut all: Vec<(Instant, bool)> = Vec::new();
        for (failed, pause) in results {
            now += Duration::from_millis(pause);
            all.push((now, failed));
            let counted = window.add(failed, now);
            let within = |age: Duration| {
                let young: Vec<_> = all.iter().filter(|(at, _)| now - *at <= age).collect();
                (young.iter().filter(|(_, failed)| *failed).count() as u32, young.len() as u32)
            };
            let (least, most) = (within(length - bucket - Duration::from_millis(1)), within(length));
            prop_assert!(least.0 <= counted.0 && counted.0 <= most.0, "{least:?} {counted:?} {most:?}");
            prop_assert!(least.1 <= counted.1 && counted.1 <= most.1, "{least:?} {counted:?} {most:?}");
        }
    }

    #[test]
    fn whatever_happens_trials_are_few_sleeps_are_bounded_and_the_past_does_not_count(
        steps in steps(), trials in 1u32..4, close_after in 1u32..5, volume in 1u32..6, sleep in 1u64..300,
    ) {
        let settings = BreakerConfig {
            half_open_requests: trials,
            close_after,
            sleep_window: Span::secs(sleep),
            ..config(volume, 0.5)
        };
        let sleep = settings.sleep_window.0;
        let mut rig = Rig::new(&settings);
        let mut out: Vec<(Ticket, usize)> = Vec::new();
        let (mut generation, mut since_open, mut last_sleep) = (0, rig.now, Duration::ZERO);
        let (mut last_entry, mut row) = (rig.now, 0);
        for step in steps {
            let before = rig.breaker.state();
            let mut verdict_of_now = None;
            match step {
                Step::Pass(ms) => rig.pass(Duration::from_millis(ms)),
                Step::Enter => {
                    let entered = rig.enter();
                    if rig.breaker.state() != before {
                        prop_assert_eq!((before, rig.breaker.state()), (BreakerState::Open, BreakerState::HalfOpen));
                        prop_assert!(rig.now >= since_open + last_sleep);
                        generation += 1;
                        (last_entry, row) = (rig.now, 0);
                    }
                    let in_flight = out.iter().filter(|(_, g)| *g == generation).count();
                    match rig.breaker.state() {
                        BreakerState::Closed => prop_assert!(entered.is_some()),
                        BreakerState::Open => prop_assert!(entered.is_none() && rig.now < since_open + last_sleep),
                        BreakerState::HalfOpen => {
                            let room = in_flight < trials as usize;
                            prop_assert_eq!(entered.is_some(), room || rig.now - last_entry >= sleep);
                        }
                    }
                    if let Some(ticket) = entered {
                        out.push((ticket, generation));
                        last_entry = rig.now;
                    }
                }
                Step::Settle(at, verdict) if !out.is_empty() => {
                    let (ticket, of) = out.swap_remove(at.index(out.len()));
                    let change = rig.settle(ticket, verdict);
                    if of == generation {
                        verdict_of_now = Some(verdict);
                        row += u32::from(verdict == Success);
                    } else {
                        prop_assert_eq!(change, None);
                    }
                    prop_assert_eq!(change.is_some(), rig.breaker.state() != before);
                }
                Step::Settle(..) => {}
            }
            let after = rig.breaker.state();
            if let Some(verdict) = verdict_of_now {
                match (before, after) {
                    (BreakerState::HalfOpen, _) => {
                        let expected = match verdict {
                            Failure => BreakerState::Open,
                            Success if row >= close_after => BreakerState::Closed,
                            _ => BreakerState::HalfOpen,
                        };
                        prop_assert_eq!(after, expected);
                    }
                    (BreakerState::Closed, _) => prop_assert!(after != BreakerState::HalfOpen),
                    (BreakerState::Open, _) => prop_assert!(false, "a ticket of an open breaker"),
                }
                if after != before {
                    generation += 1;
                }
                if after == BreakerState::Open {
                    let asleep = rig.breaker.half_open_in(rig.now);
                    let expected = match before {
                        BreakerState::Closed => sleep,
                        _ => (last_sleep * 2).min(LONGEST_SLEEP),
                    };
                    prop_assert_eq!(asleep, expected);
                    (since_open, last_sleep) = (rig.now, asleep);
                }
            }
        }
    }
}

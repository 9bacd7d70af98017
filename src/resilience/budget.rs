//! How many requests may be made again: a share of those that came lately. A pure state machine.
//!
//! Where every request fails, three attempts each are three times the load on what is failing; a share keeps that
//! bounded whatever happens. A request pays in, a retry draws. Beside the share stands a floor, without which a quiet
//! upstream could never try anything again. Counts are kept by slices of time, and what is drawn is compared with what
//! was paid in over one slice less: then no window of the length of [`WINDOW`] that ends with a retry has more of them
//! than its share and the floor, wherever it begins.

use std::time::Duration;

use tokio::time::Instant;

/// What came longer ago does not count.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Into so many slices a window is cut.
const SLICES: usize = 20;
const SLICE: Duration = Duration::from_millis(WINDOW.as_millis() as u64 / SLICES as u64);
/// A window touches one slice more than it has, if it does not begin with one.
const KEPT: usize = SLICES + 1;

/// The leave to make one request; it counts in the slice in which it was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leave(u64);

/// Requests and what was made beside them, over a sliding window.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    share: f64,
    floor: u32,
    /// A ring; the slice of number n is at n modulo its length.
    slices: [Slice; KEPT],
    /// When the first slice began.
    epoch: Instant,
    /// The number of the newest slice.
    newest: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    requests: u32,
    drawn: u32,
}

impl Budget {
    /// Lets `share` of the requests of a window be made again, and `floor` more.
    pub(super) fn new(share: f64, floor: u32, now: Instant) -> Self {
        Self {
            share,
            floor,
            slices: [Slice::default(); KEPT],
            epoch: now,
            newest: 0,
        }
    }

    /// Counts a request.
    pub(super) fn pay(&mut self, now: Instant) {
        let slice = self.slice(now);
        slice.requests = slice.requests.saturating_add(1);
    }

    /// Takes leave to make one request more; `None` when there is none.
    pub(super) fn draw(&mut self, now: Instant) -> Option<Leave> {
        self.slice(now);
        // All slices that a window which ends now may touch, against those that lie in it whole.
        let drawn: u32 = self.slices.iter().map(|slice| slice.drawn).sum();
        let oldest = self.place(self.newest + 1);
        let requests: u64 = (0..KEPT)
            .filter(|place| *place != oldest)
            .map(|place| u64::from(self.slices[place].requests))
            .sum();
        let allowed = self.share * requests as f64 + f64::from(self.floor);
        // A hair more: a fifth of 15 is 3, not 2.9999.
        if f64::from(drawn) + 1.0 > allowed + 1e-9 {
            return None;
        }
        self.slice(now).drawn += 1;
        Some(Leave(self.newest))
    }

    /// Takes back a leave that was not used.
    pub(super) fn give_back(&mut self, Leave(number): Leave) {
        // What was taken in a slice that is gone counts no more anyway.
        if number + KEPT as u64 > self.newest {
            self.slices[self.place(number)].drawn -= 1;
        }
    }

    fn place(&self, number: u64) -> usize {
        (number % KEPT as u64) as usize
    }

    /// The slice of `now`; those that have become too old are cleared.
    fn slice(&mut self, now: Instant) -> &mut Slice {
        let passed = now.saturating_duration_since(self.epoch);
        let number = (passed.as_millis() / SLICE.as_millis()) as u64;
        // A clock that was read before another's, which got here first, belongs to the newest.
        let number = number.max(self.newest);
        for gone in (self.newest + 1..=number).rev().take(KEPT) {
            let place = self.place(gone);
            self.slices[place] = Slice::default();
        }
        self.newest = number;
        let place = self.place(number);
        &mut self.slices[place]
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

    fn drawn(budget: &mut Budget, now: Instant) -> usize {
        std::iter::repeat_with(|| budget.draw(now))
            .take(10_000)
            .take_while(Option::is_some)
            .count()
    }

    #[test]
    fn a_share_of_the_requests_and_the_floor_are_granted_and_no_more() {
        let now = start();
        let mut budget = Budget::new(0.2, 3, now);
        assert_eq!(drawn(&mut budget, now), 3, "the floor without any request");
        (0..15).for_each(|_| budget.pay(now));
        assert_eq!(drawn(&mut budget, now), 3, "a fifth of 15");
        let mut none = Budget::new(0.0, 0, now);
        (0..1000).for_each(|_| none.pay(now));
        assert_eq!(drawn(&mut none, now), 0);
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let now = start();
        let mut budget = Budget::new(0.5, 0, now);
        (0..10).for_each(|_| budget.pay(now));
        assert_eq!(drawn(&mut budget.clone(), now + WINDOW - SLICE), 5);
        assert_eq!(drawn(&mut budget.clone(), now + WINDOW + SLICE), 0);
        assert_eq!(drawn(&mut budget, now), 5);
        let later = now + WINDOW / 2;
        (0..10).for_each(|_| budget.pay(later));
        assert_eq!(drawn(&mut budget, later), 5);
        // The first five are forgotten, and so are their requests.
        assert_eq!(drawn(&mut budget, now + WINDOW + SLICE), 0);
    }

    #[test]
    fn what_was_given_back_can_be_taken_again() {
        let now = start();
        let mut budget = Budget::new(0.0, 1, now);
        let leave = budget.draw(now).expect("the floor");
        assert_eq!(budget.draw(now), None);
        budget.give_back(leave);
        let leave = budget.draw(now + WINDOW / 2).expect("it was given back");
        assert_eq!(budget.draw(now + WINDOW), None);
        // Its slice is gone, and another's is not touched.
        let late = now + WINDOW * 2;
        let other = budget.draw(late);
        assert!(other.is_some());
        budget.give_back(leave);
        assert_eq!(budget.draw(late), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pay(u16),
        Draw(u16),
        GiveBack,
        Wait(u64),
    }

    proptest! {
        #[test]
        fn no_window_has_more_retries_than_its_share_of_requests_and_the_floor(
            percent in 0..=100_u32,
            floor in 0..10_u32,
            steps in proptest::collection::vec(
                prop_oneof![
                    (1..40_u16).prop_map(Step::Pay),
                    (1..40_u16).prop_map(Step::Draw),
                    Just(Step::GiveBack),
                    (0..4_000_u64).prop_map(Step::Wait),
                    (0..300_u64).prop_map(Step::Wait),
                ],
                1..200,
            ),
        ) {
            let share = f64::from(percent) / 100.0;
            let mut now = start();
            let mut budget = Budget::new(share, floor, now);
            let (mut requests, mut retries, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Pay(times) => for _ in 0..times {
                        budget.pay(now);
                        requests.push(now);
                    },
                    Step::Draw(times) => for _ in 0..times {
                        let Some(leave) = budget.draw(now) else { break };
                        retries.push(now);
                        leaves.push(leave);
                        let within = |all: &[Instant]| {
                            all.iter().filter(|at| **at + WINDOW > now).count() as f64
                        };
                        prop_assert!(within(&retries) <= share * within(&requests) + f64::from(floor) + 1e-6);
                    },
                    Step::GiveBack => if let Some(leave) = leaves.pop() {
                        budget.give_back(leave);
                        retries.pop();
                    },
                }
            }
        }
    }
}

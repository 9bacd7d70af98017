//! Requests that wait for a slot: who is next, and who has to give way. Pure: what they wait with is the caller's.
//!
//! Each [`Lane`] has a queue of its own, so that a lane that has to wait keeps nobody else waiting. Inside a lane the
//! callers (principals) take turns, so that one who asks for much waits for himself. A caller's own requests go in
//! the order in which they came; once a lane is *overloaded* (its oldest has waited for longer than [`PATIENCE`]) the
//! newest go first, for those who have waited longest are the likeliest to have given up (adaptive LIFO). A full
//! queue sheds the oldest request of who has the most in it.

use std::collections::VecDeque;
use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use crate::types::ids::Principal;
use crate::types::request::Lane;

/// A lane whose oldest request has waited for longer is overloaded.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Who asks; `None` are all without a credential.
type Caller = Option<Principal>;

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    lane: Lane,
    caller: Caller,
    number: u64,
}

/// The queues of all lanes.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    queues: [Queue<T>; Lane::ALL.len()],
    /// The most that wait in one lane.
    limit: usize,
    next_number: u64,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: AHashMap<Caller, VecDeque<Waiting<T>>>,
    /// Those who have something in `waiting`; the first is next.
    turns: VecDeque<Caller>,
    length: usize,
    longest: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    since: Instant,
    what: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: AHashMap::default(),
            turns: VecDeque::new(),
            length: 0,
            longest: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// Empty queues for at most `limit` requests each.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            queues: Default::default(),
            limit,
            next_number: 0,
        }
    }

    /// Requests that wait in `lane`.
    pub(super) fn length(&self, lane: Lane) -> usize {
        self.queues[lane as usize].length
    }

    /// The most that ever waited in `lane` at once.
    pub(super) fn longest(&self, lane: Lane) -> usize {
        self.queues[lane as usize].longest
    }

    /// Puts a request at the end; with it comes one that has to give way, if the lane is full.
    ///
    /// # Errors
    /// `what`, when it is the one that gives way.
    pub(super) fn push(
        &mut self,
        lane: Lane,
        caller: Caller,
        now: Instant,
        what: T,
    ) -> Result<(Ticket, Option<T>), T> {
        let queue = &mut self.queues[lane as usize];
        let shed = if queue.length < self.limit {
            None
        } else {
            match queue.shed(caller) {
                Some(shed) => Some(shed),
                None => return Err(what),
            }
        };
        let number = self.next_number;
        self.next_number += 1;
        let own = queue.waiting.entry(caller).or_default();
        if own.is_empty() {
            queue.turns.push_back(caller);
        }
        own.push_back(Waiting {
            number,
            since: now,
            what,
        });
        queue.length += 1;
        queue.longest = queue.longest.max(queue.length);
        let ticket = Ticket { lane, caller, number };
        Ok((ticket, shed))
    }

    /// Takes a request out that does not wait any longer; `None` when it has been taken before.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let queue = &mut self.queues[ticket.lane as usize];
        let own = queue.waiting.get(&ticket.caller)?;
        let at = own
            .binary_search_by_key(&ticket.number, |waiting| waiting.number)
            .ok()?;
        Some(queue.remove(ticket.caller, at)?.what)
    }

    /// Takes the next request of `lane` for which `fits` finds something, with that and the time for which it waited.
    pub(super) fn next<R>(
        &mut self,
        lane: Lane,
        now: Instant,
        mut fits: impl FnMut(&T) -> Option<R>,
    ) -> Option<(T, R, Duration)> {
        let queue = &mut self.queues[lane as usize];
        let newest_first = queue.is_overloaded(now);
        let found = queue.turns.iter().enumerate().find_map(|(turn, caller)| {
            let own = queue.waiting.get(caller)?;
            let mut places = 0..own.len();
            let mut fit = |at: usize| Some((turn, *caller, at, fits(&own.get(at)?.what)?));
            match newest_first {
                true => places.rev().find_map(&mut fit),
                false => places.find_map(&mut fit),
            }
        });
        let (turn, caller, at, fit) = found?;
        // Its caller's next turn comes after everybody else's.
        queue.turns.remove(turn);
        queue.turns.push_back(caller);
        let waiting = queue.remove(caller, at)?;
        Some((waiting.what, fit, now.saturating_duration_since(waiting.since)))
    }
}

impl<T> Queue<T> {
    fn is_overloaded(&self, now: Instant) -> bool {
        let oldest = self.waiting.values().filter_map(|own| own.front());
        let oldest = oldest.map(|waiting| waiting.since).min();
        oldest.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
    }

    /// Takes out the oldest request of who has the most, unless `caller` would have as many with one more.
    fn shed(&mut self, caller: Caller) -> Option<T> {
        let (most, count) = self
            .turns
            .iter()
            .map(|caller| (*caller, self.waiting.get(caller).map_or(0, VecDeque::len)))
            .max_by_key(|(_, count)| *count)?;
        let own = self.waiting.get(&caller).map_or(0, VecDeque::len);
        if own + 1 >= count {
            return None;
        }
        Some(self.remove(most, 0)?.what)
    }

    fn remove(&mut self, caller: Caller, at: usize) -> Option<Waiting<T>> {
        let own = self.waiting.get_mut(&caller)?;
        let waiting = own.remove(at)?;
        if own.is_empty() {
            self.waiting.remove(&caller);
            self.turns.retain(|other| *other != caller);
        }
        self.length -= 1;
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::time::Clock;

    const SHORT: Lane = Lane::Short;

    fn now() -> Instant {
        Clock::System.now().monotonic
    }

    fn caller(number: u8) -> Caller {
        Some(Principal([number; 16]))
    }

    /// Requests of these callers in this order; a request is its place.
    fn waiting(callers: &[u8], now: Instant) -> Lanes<usize> {
        let mut lanes = Lanes::new(100);
        for (place, number) in callers.iter().enumerate() {
            assert!(lanes.push(SHORT, caller(*number), now, place).is_ok());
        }
        lanes
    }

    fn drain(lanes: &mut Lanes<usize>, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| lanes.next(SHORT, now, |_| Some(())).map(|(what, ..)| what)).collect()
    }

    #[test]
    fn callers_take_turns_and_each_is_served_in_the_order_in_which_he_came() {
        let now = now();
        let mut lanes = waiting(&[1, 1, 1, 2, 3, 2], now);
        assert_eq!(drain(&mut lanes, now), [0, 3, 4, 1, 5, 2]);
        assert_eq!(lanes.length(SHORT), 0);
        assert_eq!(lanes.longest(SHORT), 6);
    }

    #[test]
    fn once_the_oldest_has_waited_too_long_the_newest_go_first() {
        let now = now();
        let mut lanes = waiting(&[1, 1, 1], now);
        assert_eq!(drain(&mut lanes, now + PATIENCE), [0, 1, 2]);
        let mut lanes = waiting(&[1, 1, 1], now);
        let late = now + PATIENCE + Duration::from_millis(1);
        let (last, (), waited) = lanes.next(SHORT, late, |_| Some(())).expect("one of three");
        assert_eq!((last, waited), (2, late - now));
    }

    #[test]
    fn a_full_lane_sheds_the_oldest_of_who_has_most_in_it() {
        let now = now();
        let mut lanes = Lanes::new(3);
        for place in 0..3 {
            assert!(lanes.push(SHORT, caller(1), now, place).is_ok());
        }
        assert_eq!(lanes.push(SHORT, caller(1), now, 3), Err(3), "his own are enough");
        let (_, shed) = lanes.push(SHORT, caller(2), now, 4).expect("room is made");
        assert_eq!(shed, Some(0));
        assert_eq!(
            lanes.push(SHORT, caller(2), now, 5),
            Err(5),
            "both would have as many"
        );
        assert!(
            lanes.push(Lane::Upload, caller(1), now, 6).is_ok(),
            "another lane"
        );
        assert_eq!(drain(&mut lanes, now), [1, 4, 2]);
    }

    #[test]
    fn who_leaves_is_not_served_and_who_does_not_fit_is_passed_over() {
        let now = now();
        let mut lanes = waiting(&[1], now);
        let (ticket, _) = lanes.push(SHORT, caller(1), now, 1).expect("room");
        assert!(lanes.push(SHORT, caller(2), now, 2).is_ok());
        assert_eq!(lanes.leave(ticket), Some(1));
        assert_eq!(lanes.leave(ticket), None);
        let two = lanes.next(SHORT, now, |what| (*what == 2).then_some(()));
        assert_eq!(two.map(|(what, ..)| what), Some(2));
        assert_eq!(drain(&mut lanes, now), [0]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Next,
        Leave(usize),
        Wait(u64),
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_served_twice_and_no_caller_is_passed_over(
            steps in proptest::collection::vec(
                prop_oneof![
                    5 => (0..4_u8).prop_map(Step::Push),
                    4 => Just(Step::Next),
                    1 => (0..20_usize).prop_map(Step::Leave),
                    1 => (0..1500_u64).prop_map(Step::Wait),
                ],
                1..120,
            ),
        ) {
            let (mut lanes, mut now) = (Lanes::new(8), now());
            // Who waits, with his ticket, and after whom he was served last.
            let mut there: Vec<(usize, u8, Ticket)> = Vec::new();
            let mut passed = [0_usize; 4];
            for (place, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(number) => match lanes.push(SHORT, caller(number), now, place) {
                        Ok((ticket, shed)) => {
                            prop_assert_eq!(shed.is_some(), there.len() == 8);
                            there.retain(|(other, ..)| Some(*other) != shed);
                            if !there.iter().any(|(_, other, _)| *other == number) {
                                passed[usize::from(number)] = 0;
                            }
                            there.push((place, number, ticket));
                        }
                        Err(what) => prop_assert!(what == place && there.len() == 8),
                    },
                    Step::Next => match lanes.next(SHORT, now, |_| Some(())) {
                        Some((what, ..)) => {
                            let at = there.iter().position(|(other, ..)| *other == what);
                            prop_assert!(at.is_some(), "{} does not wait", what);
                            let (_, number, _) = there.remove(at.unwrap_or(0));
                            for (_, other, _) in &there {
                                prop_assert!(*other == number || passed[usize::from(*other)] < 4);
                            }
                            (0..4_u8).for_each(|other| passed[usize::from(other)] += 1);
                            passed[usize::from(number)] = 0;
                        }
                        None => prop_assert!(there.is_empty()),
                    },
                    Step::Leave(at) if at < there.len() => {
                        let (what, _, ticket) = there.remove(at);
                        prop_assert_eq!(lanes.leave(ticket), Some(what));
                    }
                    Step::Leave(_) => {}
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                prop_assert_eq!(lanes.length(SHORT), there.len());
            }
        }
    }
}

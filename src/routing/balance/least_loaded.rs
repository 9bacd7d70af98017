//! The replica with the least share of its slots in use.
//!
//! Those that are equal take turns; otherwise the first one would do all the work of a quiet hour.

use super::round_robin::RoundRobin;
use super::{Balance, Candidate};

/// Takes the candidate with the least load.
#[derive(Debug, Default)]
pub(super) struct LeastLoaded {
    turns: RoundRobin,
}

impl Balance for LeastLoaded {
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let least = candidates.iter().map(|c| c.load(0)).min_by(f64::total_cmp)?;
        self.turns.next(candidates.iter().filter(|c| c.load(0) <= least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_share_of_slots_wins_and_equals_take_turns() {
        let mut policy = LeastLoaded::default();
        let candidate = |replica, in_flight, slots| Candidate {
            replica,
            score: 1.0,
            in_flight,
            slots,
        };
        let uneven = [candidate(0, 3, 10), candidate(1, 4, 20), candidate(2, 3, 10)];
        assert_eq!(policy.choose(&uneven), Some(1));
        let even = [candidate(0, 1, 10), candidate(1, 9, 10), candidate(2, 2, 20)];
        let turns: Vec<_> = (0..3).map(|_| policy.choose(&even)).collect();
        assert_eq!(turns, [Some(0), Some(2), Some(0)]);
        assert_eq!(policy.choose(&[]), None);
    }
}

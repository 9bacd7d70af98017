//! Each replica in turn.
//!
//! It remembers a place, not a replica, so that one that is passed over (busy, unhealthy) does not lose the
//! turns of the others.

use super::{Balance, Candidate};

/// Takes the candidate that comes next after the one taken last.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    /// The one among `candidates` whose turn it is.
    pub(super) fn next<'a>(
        &mut self,
        mut candidates: impl Iterator<Item = &'a Candidate> + Clone,
    ) -> Option<usize> {
        let first = candidates.clone().next();
        let chosen = candidates
            .find(|candidate| candidate.replica >= self.next)
            .or(first)?
            .replica;
        self.next = chosen + 1;
        Some(chosen)
    }
}

impl Balance for RoundRobin {
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize> {
        self.next(candidates.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(replicas: &[usize]) -> Vec<Candidate> {
        let candidate = |&replica| Candidate {
            replica,
            score: 1.0,
            in_flight: 0,
            slots: 10,
        };
        replicas.iter().map(candidate).collect()
    }

    #[test]
    fn replicas_take_turns_and_missing_ones_are_passed_over() {
        let mut policy = RoundRobin::default();
        let all = candidates(&[0, 1, 2]);
        let turns: Vec<_> = (0..4).map(|_| policy.choose(&all)).collect();
        assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(policy.choose(&candidates(&[0, 2])), Some(2));
        assert_eq!(policy.choose(&candidates(&[])), None);
    }

    proptest! {
        #[test]
        fn turns_are_fair_whatever_was_chosen_before(count in 1usize..9, rounds in 1usize..9, skip in 0usize..20) {
            let all = candidates(&(0..count).collect::<Vec<_>>());
            let mut policy = RoundRobin::default();
            for _ in 0..skip {
                policy.choose(&all);
            }
            let mut taken = vec![0; count];
            for _ in 0..count * rounds {
                taken[policy.choose(&all).unwrap()] += 1;
            }
            prop_assert!(taken.iter().all(|times| *times == rounds));
        }
    }
}

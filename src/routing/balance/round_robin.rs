//! Each replica in turn.
//!
//! Each choice owes every candidate the same share of it, and the one who is owed most is taken. So turns are fair as
//! well where the candidates are others from one request to the next (busy, unhealthy, of another zone); who is passed
//! over is owed nothing for that time.

use super::{Balance, Candidate};

/// One choice, in units that can be shared evenly among up to 16 candidates.
const ONE: i64 = 720_720;

/// Takes the candidate that is owed most.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// By replica.
    owed: Vec<i64>,
}

impl RoundRobin {
    /// The one among `candidates` whose turn it is.
    pub(super) fn next<'a>(
        &mut self,
        candidates: impl Iterator<Item = &'a Candidate> + Clone,
    ) -> Option<usize> {
        let places = candidates.map(|candidate| candidate.replica);
        let count = places.clone().count() as i64;
        self.owed
            .resize(self.owed.len().max(places.clone().max()? + 1), 0);
        let share = ONE / count;
        for place in places.clone() {
            self.owed[place] += share;
        }
        // The first of equals.
        let chosen = places.min_by_key(|place| -self.owed[*place])?;
        self.owed[chosen] -= share * count;
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

    #[test]
    fn turns_are_fair_among_few_whoever_is_asked_between() {
        let mut policy = RoundRobin::default();
        let mut taken = [0; 4];
        for _ in 0..30 {
            // One pair is asked three times as often as the other.
            for pair in [[0, 1], [0, 1], [0, 1], [2, 3]] {
                taken[policy.choose(&candidates(&pair)).unwrap()] += 1;
            }
        }
        assert_eq!(taken, [45, 45, 15, 15]);
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

//! Power of two choices, weighted by score over load.
//!
//! Where all are worth the same, the one with the least load is taken, and those that have hardly more take turns with
//! it: a difference of one request is chance. Otherwise two
//! candidates are taken, both with chances in proportion to what they are worth: the one whose turn it is, and
//! one of the others by chance. Of these the one with the greater `worth / load` serves; `load` is the share of its
//! slots in use with this request. In words: a replica of half the worth gets as much as leaves it half as busy.
//!
//! *Worth* is the score beside the best one, `min(1, 2 * score / best)`: among those that are within a factor of two
//! the difference is mostly chance, and to follow it is worse than to take turns. *Two*, and not the best of
//! all: several instances of this proxy stand before the same replicas, each seeing its own requests only, and the best
//! of all would be the same for all of them at the same moment. *By worth*, and not evenly: where half of the replicas
//! are ill, an even draw gives two ill ones in every sixth case of four. *By turn* for one of them: turns
//! spread requests better than chance.
//!
//! **Spread.** When the loads of those that are worth as much as the best vary by more than the threshold of
//! [`spread`](super::spread), turns and draw lean to the less loaded ones, by up to the square of the load. Those that
//! are worth less do not count for this: they have less to do on purpose.

use smallvec::SmallVec;

use super::spread::{Spread, THRESHOLD};
use super::{Balance, Candidate};
use crate::routing::health::within;
use crate::types::chance::Chance;

/// Scores count as equal to the best when they are not less than it by more than this factor.
const ALIKE: f64 = 2.0;
/// So many requests more than the least loaded has are no difference. In the simulator equal replicas are as well served
/// as by turns with this, and better when they are busy; with 0 they are not.
const CHANCE_MORE: usize = 1;
/// The greatest power of the load by which the draw leans.
const MOST_LEAN: f64 = 2.0;

/// Takes the better of two that are drawn.
#[derive(Debug)]
pub(super) struct WeightedHealth {
    chance: Chance,
    /// By replica: what it has been owed since it was offered last.
    credit: Vec<f64>,
}

impl WeightedHealth {
    /// Draws by `seed`.
    pub(super) fn seeded(seed: u64) -> Self {
        Self {
            chance: Chance::seeded(seed),
            credit: Vec::new(),
        }
    }

    /// The place of the candidate whose turn it is, each having turns in proportion to its weight (smooth weighted
    /// round robin).
    fn turn(&mut self, candidates: &[Candidate], weights: &[f64]) -> usize {
        let total = weights.iter().sum::<f64>();
        let mut first = (0, f64::MIN);
        let each = candidates.iter().zip(weights).enumerate();
        for (place, (candidate, weight)) in each.filter(|(_, (_, weight))| **weight > 0.0) {
            while self.credit.len() <= candidate.replica {
                // Instances that begin at the same moment do not begin at the same replica.
                let random = self.chance.draw();
                self.credit.push(random);
            }
            let credit = &mut self.credit[candidate.replica];
            *credit += weight / total;
            if *credit > first.1 {
                first = (place, *credit);
            }
        }
        self.credit[candidates[first.0].replica] -= 1.0;
        first.0
    }

    /// The place of the candidate with the least load; those that have hardly more take turns with it.
    fn least_loaded(&mut self, candidates: &[Candidate]) -> usize {
        let least = candidates.iter().map(|c| c.load(CHANCE_MORE));
        let least = least.fold(f64::INFINITY, f64::min);
        let weights: SmallVec<[f64; 16]> = candidates
            .iter()
            .map(|c| f64::from(u8::from(c.load(0) <= least)))
            .collect();
        self.turn(candidates, &weights)
    }

    /// A place in `weights`, which has at least one, by chance.
    fn draw(&mut self, weights: &[f64]) -> usize {
        let mut at = self.chance.draw() * weights.iter().sum::<f64>();
        for (place, weight) in weights.iter().enumerate() {
            at -= weight;
            if at < 0.0 {
                return place;
            }
        }
        // What rounding leaves falls to the heaviest, which is never one that was drawn already.
        (0..weights.len())
            .max_by(|a, b| weights[*a].total_cmp(&weights[*b]))
            .unwrap_or(0)
    }
}

/// What `candidates` are worth beside the best of them, in (0, 1].
fn worths(candidates: &[Candidate]) -> SmallVec<[f64; 16]> {
    // A score can be reckoned with then, whatever was handed in.
    let score = |c: &Candidate| within(c.score, 1.0).max(f64::MIN_POSITIVE);
    let best = candidates.iter().map(score).fold(0.0, f64::max);
    candidates
        .iter()
        .map(|c| (ALIKE * score(c) / best).min(1.0))
        .collect()
}

/// The chances of `candidates` of these `worths`.
fn weights(candidates: &[Candidate], worths: &[f64]) -> SmallVec<[f64; 16]> {
    let each = candidates.iter().zip(worths);
    let loads = each
        .clone()
        .filter(|(_, worth)| **worth >= 1.0)
        .map(|(c, _)| 100.0 * c.load(0));
    let lean = (Spread::of(loads).variance / THRESHOLD - 1.0).clamp(0.0, MOST_LEAN);
    let weight = |(c, worth): (&Candidate, &f64)| match *worth >= 1.0 {
        true if lean > 0.0 => worth / c.load(1).powf(lean),
        _ => *worth,
    };
    each.map(weight).collect()
}

impl Balance for WeightedHealth {
    fn by_score(&self) -> bool {
        true
    }

    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let [_, _, ..] = candidates else {
            return Some(candidates.first()?.replica);
        };
        let worths = worths(candidates);
        if worths.iter().all(|worth| *worth >= 1.0) {
            return Some(candidates[self.least_loaded(candidates)].replica);
        }
        let mut weights = weights(candidates, &worths);
        let first = self.turn(candidates, &weights);
        weights[first] = 0.0;
        let second = self.draw(&weights);
        let value = |place: usize| worths[place] / candidates[place].load(1);
        let taken = if value(second) > value(first) {
            second
        } else {
            first
        };
        Some(candidates[taken].replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(from: &[(f64, usize)]) -> Vec<Candidate> {
        from.iter()
            .enumerate()
            .map(|(replica, &(score, in_flight))| Candidate {
                replica,
                score,
                in_flight,
                slots: 10,
            })
            .collect()
    }

    /// How often each is taken of 10000 times, while nothing changes.
    fn shares(from: &[(f64, usize)]) -> Vec<usize> {
        let candidates = candidates(from);
        let mut policy = WeightedHealth::seeded(7);
        let mut taken = vec![0; from.len()];
        for _ in 0..10_000 {
            taken[policy.choose(&candidates).unwrap()] += 1;
        }
        taken
    }

    #[test]
    fn equal_replicas_get_equal_shares_and_the_clearly_more_loaded_of_two_nothing() {
        let even = shares(&[(1.0, 2); 4]);
        assert!(even.iter().all(|taken| (2300..2700).contains(taken)), "{even:?}");
        assert_eq!(shares(&[(1.0, 2), (1.0, 3)]), [5_000, 5_000], "that is chance");
        assert_eq!(shares(&[(1.0, 2), (1.0, 4)]), [10_000, 0]);
    }

    #[test]
    fn a_replica_of_half_the_worth_is_taken_until_it_is_half_as_busy() {
        // A quarter of the score is half of the worth.
        assert_eq!(shares(&[(1.0, 3), (0.25, 0)]), [0, 10_000]);
        assert_eq!(shares(&[(1.0, 3), (0.25, 2)]), [10_000, 0]);
    }

    #[test]
    fn two_ill_replicas_are_hardly_ever_drawn_together() {
        let taken = shares(&[(1.0, 0), (1.0, 0), (0.02, 0), (0.02, 0)]);
        assert!(taken[2] + taken[3] < 100, "{taken:?}");
    }

    #[test]
    fn the_draw_leans_against_a_spread_but_not_towards_the_ill() {
        let chance = |from: &[(f64, usize)], place: usize| {
            let candidates = candidates(from);
            let weights = weights(&candidates, &worths(&candidates));
            weights[place] / weights.iter().sum::<f64>()
        };
        assert_eq!(chance(&[(1.0, 5), (1.0, 5), (1.0, 6)], 0), 1.0 / 3.0);
        assert!(chance(&[(1.0, 2), (1.0, 5), (1.0, 8)], 0) > 0.6);
        assert!(chance(&[(1.0, 5), (1.0, 5), (0.02, 0)], 2) < 0.03);
    }

    proptest! {
        #[test]
        fn the_same_seed_makes_the_same_choices(from in prop::collection::vec((0.0..1.0f64, 0usize..10), 1..6), seed: u64) {
            let candidates = candidates(&from);
            let (mut one, mut other) = (WeightedHealth::seeded(seed), WeightedHealth::seeded(seed));
            for _ in 0..20 {
                prop_assert_eq!(one.choose(&candidates), other.choose(&candidates));
            }
        }
    }
}

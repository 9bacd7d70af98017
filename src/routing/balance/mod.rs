//! Which of several replicas is taken. A policy is a file here, a name in the configuration and an arm in
//! [`build`].
//!
//! Policies are pure: what they see is in the candidates, and chance comes from a seed. `benches/balance_sim.rs`
//! compares them.

mod least_loaded;
mod round_robin;
pub mod spread;
mod weighted_health;

use crate::config::upstreams::BalancePolicy;

/// A replica that may be taken: it is fit for the request and has a free slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its place in the upstream.
    pub replica: usize,
    /// How well it serves, in (0, 1].
    pub score: f64,
    /// Requests in flight there.
    pub in_flight: usize,
    /// Requests that may be in flight there; more than `in_flight`.
    pub slots: usize,
}

impl Candidate {
    /// The share of its slots that is in use with `more` requests.
    fn load(&self, more: usize) -> f64 {
        (self.in_flight + more) as f64 / self.slots.max(1) as f64
    }
}

/// Chooses among candidates.
pub trait Balance: Send {
    /// The place in the upstream of the candidate to take; `None` only when there is no candidate.
    /// `candidates` are in ascending order of place.
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize>;

    /// Whether it looks at scores; they need not be reckoned otherwise.
    fn by_score(&self) -> bool {
        false
    }
}

/// The policy of that name. The same `seed` makes the same choices.
pub fn build(policy: BalancePolicy, seed: u64) -> Box<dyn Balance> {
    match policy {
        BalancePolicy::RoundRobin => Box::new(round_robin::RoundRobin::default()),
        BalancePolicy::WeightedHealth => Box::new(weighted_health::WeightedHealth::seeded(seed)),
        BalancePolicy::LeastLoaded => Box::new(least_loaded::LeastLoaded::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_policy_chooses_a_candidate_whenever_there_is_one(
            from in prop::collection::vec((any::<f64>(), 0usize..12, 0usize..12), 0..9), seed: u64,
        ) {
            let candidates: Vec<_> = from
                .into_iter()
                .enumerate()
                .map(|(place, (score, in_flight, slots))| Candidate { replica: place * 2, score, in_flight, slots })
                .collect();
            use BalancePolicy::*;
            for policy in [RoundRobin, WeightedHealth, LeastLoaded] {
                let mut policy = build(policy, seed);
                for _ in 0..5 {
                    let chosen = policy.choose(&candidates);
                    prop_assert_eq!(chosen.is_some(), !candidates.is_empty());
                    prop_assert!(chosen.is_none_or(|place| candidates.iter().any(|c| c.replica == place)));
                }
            }
        }
    }
}

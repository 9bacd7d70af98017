//! Which of several replicas is taken. A policy is a file here, a name in the configuration and an arm in
//! [`build`].

mod round_robin;

use crate::config::upstreams::BalancePolicy;

/// A replica that may be taken: it is fit for the request and has a free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its place in the upstream.
    pub(super) replica: usize,
}

/// Chooses among candidates.
pub(super) trait Balance: Send {
    /// The place in the upstream of the candidate to take; `None` only when there is no candidate.
    /// `candidates` are in ascending order of place.
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize>;
}

/// The policy of that name. Those that are not active yet take turns.
pub(super) fn build(policy: BalancePolicy) -> Box<dyn Balance> {
    match policy {
        BalancePolicy::RoundRobin | BalancePolicy::WeightedHealth | BalancePolicy::LeastLoaded => {
            Box::new(round_robin::RoundRobin::default())
        }
    }
}

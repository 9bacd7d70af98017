//! Stage `routing`: chooses the replica for an attempt and waits for a slot of it.
//!
//! `pool` counts slots, `lanes` says who of those who wait is next, `balance` chooses, `health` judges (fed by
//! `probe` and by what requests meet), so does `breaker` (fed by how whole exchanges end, through `admission`),
//! `place` says where it should go by zone and label, `gradient` finds how many slots a replica has where nobody says it,
//! `members` says which replicas there are, `discovery` finds them by name, `resolve` keeps addresses fresh, `observed`
//! has what is shown and decides nothing. The stage knows replicas, not connections: those are the next stage's.

mod admission;
pub mod balance;
mod breaker;
mod chance;
pub mod control;
mod discovery;
mod fit;
mod gradient;
pub mod health;
mod lanes;
mod members;
mod metrics;
mod observed;
mod place;
mod pool;
mod probe;
mod replica;
mod resolve;
mod service;
#[cfg(test)]
mod tests;

pub use metrics::RoutingMetrics;
pub use service::{Routing, RoutingLayer};

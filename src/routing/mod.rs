//! Stage `routing`: chooses the replica for an attempt and waits for a slot of it.
//!
//! `pool` counts slots, `lanes` says who of those who wait is next, `place` says where it should go by zone and label,
//! `balance` chooses. `health` judges (fed by `probe`, by what requests meet, and by what `scrape` and `tcp_state`
//! measure), so does `breaker` (fed by how whole exchanges end, through `admission`). `gradient` finds how many slots a
//! replica has where nobody says it, `members` says which replicas there are, `discovery` finds them by name, `resolve`
//! keeps addresses fresh, `observed` has what is shown and decides nothing. The stage knows replicas, not connections:
//! those are the next stage's.

mod admission;
pub mod balance;
mod breaker;
pub mod control;
mod discovery;
pub mod failover;
mod fit;
mod gradient;
mod grpc_probe;
pub mod health;
mod lanes;
mod link;
mod members;
mod metrics;
mod observed;
mod owners;
mod place;
mod pool;
mod probe;
mod replica;
mod resolve;
mod scrape;
mod service;
mod tcp_state;
#[cfg(test)]
mod tests;

/// What the fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Reads a report of load.
    pub fn report(bytes: &[u8]) {
        let _ = super::health::orca::utilization(bytes);
    }
    /// Reads an expression, and metrics for it.
    pub fn scrape(bytes: &[u8]) {
        super::health::scrape::read_anything(bytes);
    }
    /// Reads what the kernel tells of connections.
    pub fn tcp(bytes: &[u8]) {
        super::health::tcp::read_anything(bytes);
    }
}

pub use metrics::RoutingMetrics;
pub use service::{Routing, RoutingLayer};

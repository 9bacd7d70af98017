//! Stage `routing`: chooses the replica for an attempt and waits for a slot of it.
//!
//! `pool` counts slots and holds the queue, `balance` chooses, `health` judges (fed by `probe` and by what
//! requests meet), `resolve` keeps addresses fresh. The stage knows replicas, not connections: those are the
//! next stage's.

pub mod balance;
pub mod control;
pub mod health;
mod metrics;
mod pool;
mod probe;
mod replica;
mod resolve;
mod service;
#[cfg(test)]
mod tests;

pub use metrics::RoutingMetrics;
pub use service::{Routing, RoutingLayer};

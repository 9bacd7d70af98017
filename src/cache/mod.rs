//! Answers from memory: key, freshness, the in-process tier, single flight and invalidation by tags.
//!
//! `service` is the only file that knows tower; the others are plain types and pure functions. What a request
//! is about was decided before (`classify`); how a missing answer is fetched is decided behind (`resilience`).

pub mod cache_status;
mod coalesce;
mod codec;
mod coherence;
pub mod control;
mod entry;
mod fetching;
mod fill;
pub mod freshness;
mod instances;
pub mod invalidation;
pub mod key;
mod metrics;
mod packed;
pub mod plan;
mod repeat;
pub mod request_control;
mod service;
mod settle;
mod shared_flight;
mod signed_urls;
mod sync;
#[cfg(test)]
mod tests;
pub mod tier;
mod write_guard;

pub use instances::Background;
pub use metrics::{CacheMetrics, SharedMetrics};
pub use service::{Cache, CacheLayer};

/// What the fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Reads a value.
    pub fn value(bytes: &[u8]) {
        super::codec::read_anything(bytes);
    }
    /// Reads a message.
    pub fn message(bytes: &[u8]) {
        super::coherence::read_anything(bytes);
    }
}

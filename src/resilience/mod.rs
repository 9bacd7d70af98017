//! Stage `resilience`: tries a fetch again where that is safe.
//!
//! Between the cache, which asks for a fetch, and routing, which finds a replica for each attempt. What is
//! safe is decided in `decision`; a write is never sent twice.

mod decision;
mod metrics;
mod service;
#[cfg(test)]
mod tests;

pub use metrics::RetryMetrics;
pub use service::{Retry, RetryLayer};

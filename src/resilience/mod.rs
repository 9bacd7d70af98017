//! Stage `resilience`: tries a fetch again where that is safe.
//!
//! Between the cache, which asks for a fetch, and routing, which finds a replica for each attempt. What is
//! safe is decided in `decision`; a write is never sent twice. How often that is done is bounded by `budget`, when by
//! `jitter`; a slow read may be asked a second time after the time that its kind usually takes.

mod budget;
mod decision;
mod fetching;
mod jitter;
mod metrics;
mod service;
#[cfg(test)]
mod tests;
mod upstream;

pub use metrics::RetryMetrics;
pub use service::{Retry, RetryLayer};

//! The shared vocabulary: what crosses the borders between stages.
//!
//! A leaf of the module graph: it imports nothing of this crate, and every stage may import it.

pub mod body;
pub mod chance;
pub mod cluster;
pub mod endpoint;
pub mod failure;
pub mod grpc;
#[cfg(test)]
pub(crate) mod histories;
pub mod ids;
pub mod known;
pub mod latency;
pub mod outcome;
pub mod repeat;
pub mod request;
pub mod scan;
pub mod time;
pub mod units;

pub use body::Body;
pub use failure::{Failure, FailureKind};
pub use outcome::Outcome;

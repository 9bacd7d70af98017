//! An answer from memory that can be given again to the very same request.
//!
//! The cache leaves a [`Repeatable`] on an answer; `wire` asks it when the same bytes come again, and so saves
//! the way through the stages. Whether the answer is still good is decided by the cache alone, each time.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

/// Knows whether a stored answer is still the answer to the request that it was given to.
pub trait Repeat: Send + Sync + std::fmt::Debug {
    /// The answer once more at `now`, with the value of its `Cache-Status` member appended to `cache_status`.
    /// `None` when the request has to go through the stages.
    fn again(&self, now: Instant, cache_status: &mut String) -> Option<Again>;
}

/// What differs from one time to the next; status and all other fields are the same.
#[derive(Debug)]
pub struct Again {
    /// The content.
    pub body: Bytes,
    /// Value of `Age`, in seconds.
    pub age: u64,
}

/// An extension of a response that came from memory and whose request has nothing that selects among answers but
/// its bytes and the kind of its connection.
#[derive(Debug, Clone)]
pub struct Repeatable(pub Arc<dyn Repeat>);

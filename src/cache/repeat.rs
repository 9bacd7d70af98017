//! A stored answer as the wire may ask for it again, without a request.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::cache_status::CacheStatus;
use super::entry::{Entry, Staleness};
use super::fetching::Shared;
use super::invalidation::Validity;
use super::key::Key;
use crate::types::repeat::{Again, Repeat};

/// The answer that was found under a key.
#[derive(Debug)]
pub(super) struct StoredAnswer {
    shared: Arc<Shared>,
    key: Key,
    /// Only to tell it from another one that may lie under the key by now; its memory is not held.
    entry: Weak<Entry>,
    detail: &'static str,
}

impl StoredAnswer {
    pub(super) fn new(shared: Arc<Shared>, key: Key, entry: &Arc<Entry>, detail: &'static str) -> Self {
        Self {
            shared,
            key,
            entry: Arc::downgrade(entry),
            detail,
        }
    }
}

impl Repeat for StoredAnswer {
    fn again(&self, now: Instant, cache_status: &mut String) -> Option<Again> {
        let shared = &self.shared;
        let entry = shared.l1.get(&self.key)?;
        let same = std::ptr::eq(Arc::as_ptr(&entry), self.entry.as_ptr());
        if !same
            || shared.validity(&entry, now) != Validity::Current
            || entry.staleness(false, now) != Staleness::Fresh
        {
            return None;
        }
        if let Some(ahead) = &shared.config.refresh_ahead
            && entry.is_hot_and_ageing(ahead.last.0, ahead.min_hits, now)
        {
            return None;
        }
        shared.metrics.l1_hits.inc();
        CacheStatus::hit(entry.signed_ttl(now), &self.key, self.detail).push(cache_status);
        Some(Again {
            body: entry.packed.body(),
            age: entry.age(now).as_secs(),
        })
    }
}

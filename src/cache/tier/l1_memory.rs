//! The in-process tier: moka, bounded in bytes.
//!
//! moka's own expiry is memory hygiene only; whether an entry may be served is decided over its deadline.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::ops::compute::{CompResult, Op};

use crate::cache::entry::Entry;
use crate::cache::key::Key;
use crate::cache::metrics::CacheMetrics;

/// moka evicts after every 64th insertion or some time, so it holds more than its bound meanwhile. After an entry of
/// more bytes than this it does so at once.
const LARGE: u32 = 64 << 10;

/// Stored answers by key.
#[derive(Debug, Clone)]
pub(in crate::cache) struct L1 {
    entries: moka::sync::Cache<Key, Arc<Entry>, BuildHasherDefault<DigestHasher>>,
}

impl L1 {
    /// Holds up to `max_bytes`; forgets what is older than `ceiling`.
    pub(in crate::cache) fn new(max_bytes: u64, ceiling: Duration, metrics: &CacheMetrics) -> Self {
        let (size, age) = (metrics.evicted_for_size.clone(), metrics.evicted_by_age.clone());
        let entries = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, entry: &Arc<Entry>| entry.weight())
            .time_to_live(ceiling.max(Duration::from_secs(1)))
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => size.inc(),
                RemovalCause::Expired => age.inc(),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build_with_hasher(BuildHasherDefault::default());
        Self { entries }
    }

    pub(in crate::cache) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.entries.get(key)
    }

    /// Keeps `entry`, unless one that was asked for later is there already: a slow fetch must not bring back what
    /// was there before. Tells whether it is kept.
    pub(in crate::cache) fn insert(&self, key: Key, entry: Arc<Entry>) -> bool {
        let is_large = entry.weight() > LARGE;
        let result = self.entries.entry(key).and_compute_with(|there| match there {
            Some(there) if there.value().asked_at > entry.asked_at => Op::Nop,
            _ => Op::Put(entry),
        });
        if is_large {
            self.entries.run_pending_tasks();
        }
        !matches!(result, CompResult::Unchanged(_))
    }

    /// Tells whether there was anything.
    pub(in crate::cache) fn remove(&self, key: &Key) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Everything held, in no order; what comes and goes meanwhile may be seen or not.
    pub(in crate::cache) fn iter(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> + '_ {
        self.entries.iter().map(|(key, entry)| (*key, entry))
    }

    /// Bytes that may be held.
    pub(in crate::cache) fn max_bytes(&self) -> u64 {
        self.entries.policy().max_capacity().unwrap_or(u64::MAX)
    }

    /// Entries and bytes held.
    pub(in crate::cache) fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

/// Keys are digests already: their first eight bytes are as good a hash as any.
#[derive(Debug, Default)]
pub(in crate::cache) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        let length = bytes.len().min(8);
        word[..length].copy_from_slice(&bytes[..length]);
        // Slices announce their length first; mixing keeps both.
        self.0 = self.0.rotate_left(32) ^ u64::from_le_bytes(word);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A quarter of the memory that this process may use (cgroup v2, v1, or the machine's), at most 512 MiB.
pub fn default_max_bytes() -> u64 {
    const MOST: u64 = 512 << 20;
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    });
    let limits = [
        number("/sys/fs/cgroup/memory.max"),
        number("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        machine,
    ];
    limits
        .into_iter()
        .flatten()
        .min()
        .map_or(MOST, |memory| (memory / 4).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_size_is_at_most_512_mib_and_not_nothing() {
        let bytes = default_max_bytes();
        assert!(bytes > 1 << 20 && bytes <= 512 << 20, "{bytes}");
    }
}

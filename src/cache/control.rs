//! What the rest of the program may see of the cache while it works.

use super::metrics::CacheMetrics;
use super::tier::l1_memory::L1;

/// A handle on a cache in use.
#[derive(Debug, Clone)]
pub struct CacheControl {
    l1: L1,
    metrics: CacheMetrics,
}

impl CacheControl {
    pub(super) fn new(l1: L1, metrics: CacheMetrics) -> Self {
        Self { l1, metrics }
    }

    /// Brings the gauges of entries and bytes up to date; call it before metrics are read.
    pub fn refresh_gauges(&self) {
        let (entries, bytes) = self.l1.size();
        self.metrics.entries.set(entries as i64);
        self.metrics.bytes.set(bytes as i64);
    }
}

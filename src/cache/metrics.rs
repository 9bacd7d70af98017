//! What the cache counts. Requests by outcome are counted at the wire, where the status is known.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges of the cache.
#[derive(Debug, Clone)]
pub struct CacheMetrics {
    /// Entries held; refreshed when metrics are read.
    pub(super) entries: IntGauge,
    /// Bytes held; refreshed when metrics are read.
    pub(super) bytes: IntGauge,
    pub(super) evicted_for_size: IntCounter,
    pub(super) evicted_by_age: IntCounter,
    /// Requests that waited for another request's fetch.
    pub(super) coalesced: IntCounter,
    /// Writes that ended stored answers.
    pub(super) invalidations: IntCounter,
    /// Writes whose outcome was never seen.
    pub(super) unsettled: IntCounter,
    /// Writes after whose answer Dify went on.
    pub(super) background: IntCounter,
    /// Answers that told that such work was done, and let reads be kept again.
    pub(super) settled: IntCounter,
    pub(super) stale_while_revalidate: IntCounter,
    pub(super) stale_if_error: IntCounter,
    pub(super) refreshed: IntCounter,
    pub(super) refreshes_failed: IntCounter,
    pub(super) refreshes_skipped: IntCounter,
    pub(super) purges: IntCounter,
}

impl CacheMetrics {
    /// Registers the cache's metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let evictions = counters(
            "dify_edge_cache_evictions_total",
            "Stored answers removed, by cause",
            "cause",
        )?;
        let stale = counters(
            "dify_edge_cache_stale_total",
            "Stale answers given, by reason",
            "reason",
        )?;
        let refreshes = counters(
            "dify_edge_cache_refreshes_total",
            "Fetches in the background, by result",
            "result",
        )?;
        Ok(Self {
            entries: gauge("dify_edge_cache_entries", "Answers held in memory")?,
            bytes: gauge(
                "dify_edge_cache_bytes",
                "Bytes of answers held in memory, with overhead",
            )?,
            evicted_for_size: evictions.with_label_values(&["size"]),
            evicted_by_age: evictions.with_label_values(&["expired"]),
            stale_while_revalidate: stale.with_label_values(&["while_revalidate"]),
            stale_if_error: stale.with_label_values(&["if_error"]),
            refreshed: refreshes.with_label_values(&["done"]),
            refreshes_failed: refreshes.with_label_values(&["failed"]),
            refreshes_skipped: refreshes.with_label_values(&["skipped"]),
            purges: counter("dify_edge_cache_purges_total", "Purges by an operator")?,
            coalesced: counter(
                "dify_edge_cache_coalesced_total",
                "Requests that waited for another request's fetch",
            )?,
            invalidations: counter(
                "dify_edge_cache_invalidations_total",
                "Writes that ended stored answers",
            )?,
            background: counter(
                "dify_edge_cache_background_writes_total",
                "Writes after whose answer Dify works on, whose answers stay out of the cache for a while",
            )?,
            settled: counter(
                "dify_edge_cache_settled_total",
                "Answers that told of the end of such work before the while was over",
            )?,
            unsettled: counter(
                "dify_edge_cache_unsettled_writes_total",
                "Writes that were cut off, whose answers stay out of the cache for a while",
            )?,
        })
    }
}

//! What the cache counts. Requests by outcome are counted at the wire, where the status is known.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::time::Instant;

use super::codec::Unreadable;

/// How often unreadable things are logged.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// A registry, with what makes and registers at once.
struct Registering<'a>(&'a Registry);

impl Registering<'_> {
    fn with<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.with(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.with(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.with(IntGauge::new(name, help)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.with(Histogram::with_opts(options)?)
    }
}

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
    /// Look-ups in memory.
    pub(super) l1_hits: IntCounter,
    pub(super) l1_misses: IntCounter,
}

impl CacheMetrics {
    /// Registers the cache's metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let registry = Registering(registry);
        let evictions = registry.counters(
            "dify_edge_cache_evictions_total",
            "Stored answers removed, by cause",
            "cause",
        )?;
        let stale = registry.counters(
            "dify_edge_cache_stale_total",
            "Stale answers given, by reason",
            "reason",
        )?;
        let refreshes = registry.counters(
            "dify_edge_cache_refreshes_total",
            "Fetches in the background, by result",
            "result",
        )?;
        let l1 = registry.counters(
            "dify_edge_cache_l1_reads_total",
            "Look-ups in memory, by result",
            "result",
        )?;
        Ok(Self {
            l1_hits: l1.with_label_values(&["hit"]),
            l1_misses: l1.with_label_values(&["miss"]),
            entries: registry.gauge("dify_edge_cache_entries", "Answers held in memory")?,
            bytes: registry.gauge(
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
            purges: registry.counter("dify_edge_cache_purges_total", "Purges by an operator")?,
            coalesced: registry.counter(
                "dify_edge_cache_coalesced_total",
                "Requests that waited for another request's fetch",
            )?,
            invalidations: registry.counter(
                "dify_edge_cache_invalidations_total",
                "Writes that ended stored answers",
            )?,
            background: registry.counter(
                "dify_edge_cache_background_writes_total",
                "Writes after whose answer Dify works on, whose answers stay out of the cache for a while",
            )?,
            settled: registry.counter(
                "dify_edge_cache_settled_total",
                "Answers that told of the end of such work before the while was over",
            )?,
            unsettled: registry.counter(
                "dify_edge_cache_unsettled_writes_total",
                "Writes that were cut off, whose answers stay out of the cache for a while",
            )?,
        })
    }
}

/// Counters of the tier that instances share, and of what they tell each other.
#[derive(Debug, Clone)]
pub struct SharedMetrics {
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) errors: IntCounter,
    pub(super) deadline_exceeded: IntCounter,
    /// Not asked: too much under way, or a change of one's own not confirmed.
    pub(super) skipped: IntCounter,
    pub(super) bytes_read: IntCounter,
    pub(super) bytes_written: IntCounter,
    pub(super) writes: IntCounter,
    pub(super) writes_dropped: IntCounter,
    pub(super) round_trip: Histogram,
    pub(super) led: IntCounter,
    pub(super) followed: IntCounter,
    pub(super) lease_lost: IntCounter,
    pub(super) sent: IntCounter,
    pub(super) send_failures: IntCounter,
    pub(super) orders_dropped: IntCounter,
    pub(super) heard: IntCounter,
    /// From the sender's wall clock to this one's.
    pub(super) lag: Histogram,
    pub(super) gaps: IntCounter,
    pub(super) hears: IntGauge,
    pub(super) open: IntGauge,
    unreadable_values: IntCounter,
    unreadable_messages: IntCounter,
    /// When something unreadable was last logged.
    logged: Arc<Mutex<Option<Instant>>>,
}

impl SharedMetrics {
    /// Registers the metrics of the shared tier.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let registry = Registering(registry);
        let reads = registry.counters(
            "dify_edge_cache_l2_reads_total",
            "Look-ups in Redis, by result",
            "result",
        )?;
        let writes = registry.counters(
            "dify_edge_cache_l2_writes_total",
            "Answers for Redis, by what became of them",
            "result",
        )?;
        let bytes = registry.counters(
            "dify_edge_cache_l2_bytes_total",
            "Bytes of values from and to Redis",
            "direction",
        )?;
        let leases = registry.counters(
            "dify_edge_cache_l2_flights_total",
            "Fetches for all instances: led by this one, waited for, or waited for in vain",
            "role",
        )?;
        let board = registry.counters(
            "dify_edge_coherence_messages_total",
            "Invalidations told to other instances and heard from them",
            "direction",
        )?;
        let unreadable = registry.counters(
            "dify_edge_cache_l2_unreadable_total",
            "What was found in Redis and not used: another version, damaged, or with another secret",
            "what",
        )?;
        Ok(Self {
            hits: reads.with_label_values(&["hit"]),
            misses: reads.with_label_values(&["miss"]),
            errors: reads.with_label_values(&["error"]),
            deadline_exceeded: reads.with_label_values(&["deadline_exceeded"]),
            skipped: reads.with_label_values(&["skipped"]),
            bytes_read: bytes.with_label_values(&["read"]),
            bytes_written: bytes.with_label_values(&["written"]),
            writes: writes.with_label_values(&["stored"]),
            writes_dropped: writes.with_label_values(&["dropped"]),
            round_trip: registry.histogram(
                "dify_edge_cache_l2_round_trip_seconds",
                "Commands to Redis that were answered in time",
                &[
                    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                ],
            )?,
            led: leases.with_label_values(&["led"]),
            followed: leases.with_label_values(&["followed"]),
            lease_lost: leases.with_label_values(&["in_vain"]),
            sent: board.with_label_values(&["sent"]),
            send_failures: board.with_label_values(&["failed"]),
            orders_dropped: board.with_label_values(&["dropped"]),
            heard: board.with_label_values(&["heard"]),
            lag: registry.histogram(
                "dify_edge_coherence_lag_seconds",
                "From the moment an invalidation was sent to the moment it was heard, by the clocks of both",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0],
            )?,
            gaps: registry.counter(
                "dify_edge_coherence_gaps_total",
                "Times that messages were lost and everything in memory was ended",
            )?,
            hears: registry.gauge(
                "dify_edge_coherence_heard",
                "Whether other instances are heard (1) or not (0)",
            )?,
            open: registry.gauge(
                "dify_edge_cache_l2_open",
                "Whether Redis is used (1) or left out (0)",
            )?,
            unreadable_values: unreadable.with_label_values(&["value"]),
            unreadable_messages: unreadable.with_label_values(&["message"]),
            logged: Arc::default(),
        })
    }

    /// Counts what could not be read, and says so once a minute.
    pub(super) fn unreadable(&self, what: Unread, why: Unreadable, now: Instant) {
        match what {
            Unread::Value => self.unreadable_values.inc(),
            Unread::Message => self.unreadable_messages.inc(),
        }
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_PAUSE) {
            *logged = Some(now);
            tracing::warn!(
                "something in Redis is not used: {why} (said once a minute; counted in dify_edge_cache_l2_unreadable_total)"
            );
        }
    }

    /// Values and messages that could not be read.
    pub(super) fn unread(&self) -> u64 {
        self.unreadable_values.get() + self.unreadable_messages.get()
    }
}

/// What could not be read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unread {
    Value,
    Message,
}

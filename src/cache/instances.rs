//! Puts together a cache that is one of many, and runs what it does beside requests.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::codec::Seal;
use super::coherence::{Coherence, Outbox};
use super::fetching::Shared;
use super::invalidation::TagTable;
use super::metrics::{CacheMetrics, SharedMetrics};
use super::service::CacheLayer;
use super::tier::Tier;
use super::tier::gate::Gate;
use super::tier::l2::{L2, Limits, Writer};
use super::tier::l2_redis::Redis;
use crate::config::CacheConfig;
use crate::types::time::Clock;

/// What a cache that shares a tier does in the background.
pub struct Background {
    redis: Arc<Redis>,
    parts: Parts,
}

/// The same, whatever the tier is.
pub(super) struct Parts {
    pub(super) coherence: Arc<Coherence>,
    pub(super) outbox: Outbox,
    pub(super) writer: Writer,
    /// How quickly the tier has to answer to be used.
    pub(super) timeout: Duration,
}

impl CacheLayer {
    /// An empty cache that shares with other instances what Redis holds.
    ///
    /// # Errors
    /// When the URL, a file or the secret of `cache.redis` cannot be used.
    pub fn shared(
        config: CacheConfig,
        clock: Clock,
        metrics: CacheMetrics,
        shared: SharedMetrics,
    ) -> Result<(Self, Background), String> {
        let redis = Arc::new(Redis::new(&config.redis, clock.clone())?);
        let secret = config.redis.secret()?;
        let seal = Seal::new(secret.as_deref());
        let (cache, parts) = over(config, clock, metrics, shared, redis.clone(), seal);
        Ok((Self::of(cache), Background { redis, parts }))
    }
}

/// The state of a cache over `tier`.
pub(super) fn over(
    config: CacheConfig,
    clock: Clock,
    metrics: CacheMetrics,
    shared: SharedMetrics,
    tier: Arc<dyn Tier>,
    seal: Seal,
) -> (Shared, Parts) {
    let limits = Limits {
        timeout: config.redis.timeout.0,
        max_entry: config.redis.max_entry_bytes.0,
        ceiling: Duration::from_secs(config.ttl_seconds),
        lease: config.redis.lease.0,
    };
    let tags = Arc::new(TagTable::new(clock.now().monotonic));
    let gate = Arc::new(Gate::default());
    let (coherence, outbox) = Coherence::shared(
        tags.clone(),
        clock.clone(),
        tier.clone(),
        gate.clone(),
        seal.clone(),
        (config.redis.coherence_window.0, config.unsettled_window.0),
        shared.clone(),
    );
    let (l2, writer) = L2::new(tier, coherence.clone(), gate, seal, clock.clone(), shared, limits);
    let cache = Shared::new(config, clock, metrics, tags, coherence.clone(), Some(l2));
    let timeout = limits.timeout;
    (
        cache,
        Parts {
            coherence,
            outbox,
            writer,
            timeout,
        },
    )
}

impl Background {
    /// Starts it all; it ends with `stop`.
    pub fn spawn(self, stop: &CancellationToken, tracker: &TaskTracker) {
        let Parts {
            coherence,
            outbox,
            writer,
            timeout,
        } = self.parts;
        tracker.spawn(self.redis.run(coherence, stop.clone()));
        tracker.spawn(outbox.run(timeout, stop.clone()));
        tracker.spawn(writer.run(stop.clone()));
    }
}

//! What the stage keeps for one upstream: its settings, what may still be made again, and how long its answers take.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::budget::{Budget, WINDOW};
use super::jitter::Jitter;
use super::metrics::UpstreamRetryMetrics;
use crate::config::UpstreamConfig;
use crate::config::retry::{HedgeConfig, RetryConfig};
use crate::types::latency::Recent;
use crate::types::outcome::RouteClass;

/// Retries of a window beside the share: 3 a second. One page of the console asks for two dozen things at once, and
/// when the only replica of a small installation restarts under it, each needs a retry. To a server that is in trouble
/// three connections a second more are nothing.
const RETRY_FLOOR: u32 = 3 * WINDOW.as_secs() as u32;
/// Hedges of a window beside the share, so that a quiet upstream has one at all.
const HEDGE_FLOOR: u32 = 1;

/// Times of answers count for so long, and at most twice that.
const MEMORY: Duration = Duration::from_secs(60);
/// With fewer of them nothing is known.
const LEAST: u64 = 20;

/// One upstream.
pub(super) struct Upstream {
    pub(super) retry: RetryConfig,
    pub(super) retries: Mutex<Budget>,
    pub(super) jitter: Jitter,
    /// None: nothing is hedged.
    pub(super) hedge: Option<Hedging>,
    pub(super) metrics: UpstreamRetryMetrics,
}

/// What hedges go by.
pub(super) struct Hedging {
    quantile: f64,
    pub(super) budget: Mutex<Budget>,
    metadata: Mutex<Recent>,
    listing: Mutex<Recent>,
}

impl Upstream {
    pub(super) fn new(
        config: &UpstreamConfig,
        seed: u64,
        metrics: UpstreamRetryMetrics,
        now: Instant,
    ) -> Self {
        Self {
            retries: Mutex::new(Budget::new(config.retry.budget.0, RETRY_FLOOR, now)),
            retry: config.retry.clone(),
            jitter: Jitter::new(seed),
            hedge: config.hedge.enabled.then(|| Hedging::new(&config.hedge, now)),
            metrics,
        }
    }
}

impl Hedging {
    fn new(config: &HedgeConfig, now: Instant) -> Self {
        let times = || Mutex::new(Recent::new(MEMORY));
        Self {
            quantile: f64::from(config.percentile) / 100.0,
            budget: Mutex::new(Budget::new(config.budget.0, HEDGE_FLOOR, now)),
            metadata: times(),
            listing: times(),
        }
    }

    /// Whether reads of `class` may be hedged: those that a page waits for, and that cost little.
    pub(super) fn covers(&self, class: RouteClass) -> bool {
        self.times(class).is_some()
    }

    /// After this time without an answer a read of `class` is asked again; `None` while too little is known.
    pub(super) fn after(&self, class: RouteClass, now: Instant) -> Option<Duration> {
        let times = self.times(class)?.lock();
        let is_known = times.count(now) >= LEAST;
        is_known.then(|| times.quantile(self.quantile, now)).flatten()
    }

    /// Takes a time to the first byte into account.
    pub(super) fn answered(&self, class: RouteClass, time: Duration, now: Instant) {
        if let Some(times) = self.times(class) {
            times.lock().record(time, now);
        }
    }

    fn times(&self, class: RouteClass) -> Option<&Mutex<Recent>> {
        match class {
            RouteClass::Metadata => Some(&self.metadata),
            RouteClass::Listing => Some(&self.listing),
            _ => None,
        }
    }
}

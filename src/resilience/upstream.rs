//! What the stage keeps for one upstream: its settings, what may still be made again, and how long its answers take.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::budget::{Budget, WINDOW};
use super::jitter::Jitter;
use super::metrics::UpstreamRetryMetrics;
use super::percentile::Times;
use crate::config::UpstreamConfig;
use crate::config::retry::{HedgeConfig, RetryConfig};
use crate::types::outcome::RouteClass;

/// Retries of a window beside the share: 3 a second. One page of the console asks for two dozen things at once, and
/// when the only replica of a small installation restarts under it, each needs a retry. To a server that is in trouble
/// three connections a second more are nothing.
const RETRY_FLOOR: u32 = 3 * WINDOW.as_secs() as u32;
/// Hedges of a window beside the share, so that a quiet upstream has one at all.
const HEDGE_FLOOR: u32 = 1;

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
    percentile: u32,
    pub(super) budget: Mutex<Budget>,
    metadata: Mutex<Times>,
    listing: Mutex<Times>,
}

impl Upstream {
    pub(super) fn new(config: &UpstreamConfig, seed: u64, metrics: UpstreamRetryMetrics, now: Instant) -> Self {
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
        let times = || Mutex::new(Times::new(now));
        Self {
            percentile: config.percentile,
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
        self.times(class)?.lock().percentile(self.percentile, now)
    }

    /// Takes a time to the first byte into account.
    pub(super) fn answered(&self, class: RouteClass, time: Duration, now: Instant) {
        if let Some(times) = self.times(class) {
            times.lock().observe(time, now);
        }
    }

    fn times(&self, class: RouteClass) -> Option<&Mutex<Times>> {
        match class {
            RouteClass::Metadata => Some(&self.metadata),
            RouteClass::Listing => Some(&self.listing),
            _ => None,
        }
    }
}

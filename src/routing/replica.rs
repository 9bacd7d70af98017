//! One replica: where it is and how it fares.
//!
//! Its addresses are in the endpoint that the next stage sees as well; its health is judged in `health` and
//! fed from `service` and `probe`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::admission::Door;
use super::health::signals::Signals;
use super::health::{Event, Health, orca};
use super::metrics::ReplicaMetrics;
use super::resolve::Resolve;
use crate::types::endpoint::Endpoint;
use crate::types::time::Clock;

/// A look-up is given up after this.
const LOOKUP_LIMIT: Duration = Duration::from_secs(1);

/// One replica of an upstream.
pub(super) struct Replica {
    pub(super) url: String,
    pub(super) standby: bool,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) metrics: ReplicaMetrics,
    /// Lets requests in, or not, by how those before fared.
    pub(super) door: Door,
    /// Wakes the prober before its time.
    pub(super) probe_soon: Notify,
    /// What its score is made of.
    pub(super) signals: Mutex<Signals>,
    health: Mutex<Health>,
    /// The same as `health` says, to be read without its lock.
    healthy: AtomicBool,
    resolver: Arc<dyn Resolve>,
    /// When the last look-up ended, held during one: who comes meanwhile waits and takes its result.
    looked_up: tokio::sync::Mutex<Option<Instant>>,
}

impl Replica {
    pub(super) fn new(
        url: String,
        standby: bool,
        endpoint: Endpoint,
        health: Health,
        resolver: Arc<dyn Resolve>,
        metrics: ReplicaMetrics,
        door: Door,
    ) -> Self {
        Self {
            url,
            standby,
            endpoint: Arc::new(endpoint),
            metrics,
            door,
            probe_soon: Notify::new(),
            signals: Mutex::default(),
            health: Mutex::new(health),
            healthy: AtomicBool::new(true),
            resolver,
            looked_up: tokio::sync::Mutex::new(None),
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub(super) fn consecutive_failures(&self) -> u32 {
        self.health.lock().consecutive_failures()
    }

    /// Takes what was learnt into account. True when the replica went out or came back by it.
    pub(super) fn learn(&self, event: Event) -> bool {
        let mut health = self.health.lock();
        let changed = health.on(event);
        if changed {
            let healthy = health.is_healthy();
            self.healthy.store(healthy, Ordering::Release);
            self.metrics.healthy.set(i64::from(healthy));
            if healthy {
                tracing::info!(replica = self.url, cause = ?event, "replica is healthy again");
            } else {
                tracing::warn!(replica = self.url, cause = ?event, "replica is unhealthy");
            }
        }
        changed
    }

    /// Takes what it says about its load off the head of an answer, and into account.
    pub(super) fn take_report(&self, head: &mut HeaderMap, now: Instant) {
        if let Some(share) = orca::take(head) {
            self.signals.lock().resources.reported(share, now);
        }
    }

    /// Looks the name up, unless somebody did after `since`. Keeps the old addresses when that fails.
    /// Gives up at `limit`.
    pub(super) async fn look_up(&self, since: Instant, limit: Option<Instant>, clock: &Clock) {
        if self.endpoint.is_literal() {
            return;
        }
        let own_limit = clock.now().monotonic + LOOKUP_LIMIT;
        let limit = limit.map_or(own_limit, |limit| limit.min(own_limit));
        let looking = async {
            let mut looked_up = self.looked_up.lock().await;
            if looked_up.is_some_and(|at| at >= since) {
                return;
            }
            match self
                .resolver
                .lookup(&self.endpoint.host, self.endpoint.port)
                .await
            {
                Ok(addresses) if !addresses.is_empty() => {
                    if self.endpoint.set_addresses(addresses) {
                        tracing::info!(
                            replica = self.url,
                            addresses = ?self.endpoint.addresses(),
                            "replica has new addresses"
                        );
                    }
                }
                Ok(_) => tracing::debug!(replica = self.url, "the name has no addresses"),
                Err(error) => tracing::debug!(replica = self.url, %error, "the name cannot be looked up"),
            }
            *looked_up = Some(clock.now().monotonic);
        };
        if timeout_at(limit, looking).await.is_err() {
            tracing::debug!(replica = self.url, "looking the name up took too long");
        }
    }
}

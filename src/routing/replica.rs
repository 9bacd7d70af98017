//! One replica: where it is and how it fares.
//!
//! Its addresses are in the endpoint that the next stage sees as well; its health is judged in `health` and
//! fed from `service` and `probe`. [`Blueprint`] is what all replicas of an upstream have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::admission::Door;
use super::gradient::Gradient;
use super::health::ewma::Route;
use super::health::signals::Signals;
use super::health::silence::Silence;
use super::health::{Event, Health, orca};
use super::metrics::{ReplicaChange, ReplicaMetrics, RoutingMetrics};
use super::observed::Observed;
use super::place::{Marks, Rules};
use super::resolve::Resolve;
use crate::config::scrape::ScrapeConfig;
use crate::config::upstreams::{Auto, Capacity, ConnectionsConfig, HealthCheckConfig, ReplicaConfig};
use crate::config::{BreakerConfig, UpstreamProtocol};
use crate::types::cluster::Cluster;
use crate::types::endpoint::Endpoint;
use crate::types::outcome::RouteClass;
use crate::types::request::UpstreamId;
use crate::types::time::Clock;

/// A look-up is given up after this.
const LOOKUP_LIMIT: Duration = Duration::from_secs(1);

/// How the replicas of an upstream are made.
pub(super) struct Blueprint {
    pub(super) upstream: UpstreamId,
    /// The upstream's name in metrics.
    pub(super) name: String,
    pub(super) breaker: BreakerConfig,
    pub(super) check: HealthCheckConfig,
    pub(super) scrape: Option<ScrapeConfig>,
    pub(super) protocol: UpstreamProtocol,
    /// What a replica can take, if that is known, and
    pub(super) capacity: Option<Capacity>,
    /// how much of that is used.
    pub(super) connections: ConnectionsConfig,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) rules: Option<Arc<Rules>>,
    pub(super) metrics: RoutingMetrics,
}

impl Blueprint {
    /// A replica at `place`.
    ///
    /// # Errors
    /// When its URL cannot be read.
    pub(super) fn build(
        &self,
        from: &ReplicaConfig,
        place: usize,
        cluster: Cluster,
    ) -> Result<Replica, String> {
        let endpoint = Endpoint::parse(self.upstream, place, &from.url)?;
        let authority = endpoint.authority();
        let breaker = self.metrics.breaker(&self.name, &authority);
        let mark = |rules: &Arc<Rules>| rules.mark(from.zone.as_deref(), &from.labels);
        let (connections, protocol) = (&self.connections, self.protocol);
        let (slots, gradient) = match from.capacity.or(self.capacity) {
            Some(Capacity::Fixed(capacity)) => (connections.in_flight(protocol, Some(capacity)), None),
            Some(Capacity::Found(Auto::Auto)) => {
                let gradient = Gradient::new(connections.most_in_flight(protocol));
                (gradient.limit(), Some(Mutex::new(gradient)))
            }
            None => (connections.in_flight(protocol, None), None),
        };
        let metrics = self.metrics.replica(&self.name, &authority);
        metrics.slots.set(slots as i64);
        Ok(Replica {
            url: from.url.clone(),
            zone: from.zone.clone(),
            labels: from.labels.clone(),
            marks: self.rules.as_ref().map(mark).unwrap_or_default(),
            cluster,
            metrics,
            door: Door::new(from.url.clone(), &self.breaker, breaker),
            probe_soon: Notify::new(),
            signals: Mutex::default(),
            observed: Observed::default(),
            discovered: false,
            slots: AtomicUsize::new(slots),
            gradient,
            leaving: AtomicBool::new(false),
            stop: CancellationToken::new(),
            health: Mutex::new((
                Health::new(self.check.unhealthy_after, self.check.healthy_after),
                Silence::default(),
            )),
            healthy: AtomicBool::new(true),
            resolver: self.resolver.clone(),
            looked_up: tokio::sync::Mutex::new(None),
            endpoint: Arc::new(endpoint),
        })
    }

    /// Takes the metrics of a replica that is gone away, so that their number stays bounded.
    pub(super) fn forget(&self, replica: &Replica) {
        self.metrics.forget(&self.name, &replica.endpoint.authority());
    }
}

/// One replica of an upstream.
pub(super) struct Replica {
    pub(super) url: String,
    /// Where it runs.
    pub(super) zone: Option<String>,
    /// What it is good for.
    pub(super) labels: BTreeMap<String, String>,
    /// What the rules of place make of both.
    pub(super) marks: Marks,
    /// The cluster that it belongs to.
    pub(super) cluster: Cluster,
    /// Whether its name was found, rather than configured.
    pub(super) discovered: bool,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) metrics: ReplicaMetrics,
    /// Lets requests in, or not, by how those before fared.
    pub(super) door: Door,
    /// Wakes the prober before its time.
    pub(super) probe_soon: Notify,
    /// What its score is made of.
    pub(super) signals: Mutex<Signals>,
    /// What is shown of it.
    pub(super) observed: Observed,
    /// Ends what runs beside requests for it.
    pub(super) stop: CancellationToken,
    slots: AtomicUsize,
    /// Finds the slots, unless they are given.
    gradient: Option<Mutex<Gradient>>,
    /// Whether it is no longer a member and only ends what it has begun.
    leaving: AtomicBool,
    health: Mutex<(Health, Silence)>,
    /// The same as `health` says, to be read without its lock.
    healthy: AtomicBool,
    resolver: Arc<dyn Resolve>,
    /// When the last look-up ended, held during one: who comes meanwhile waits and takes its result.
    looked_up: tokio::sync::Mutex<Option<Instant>>,
}

impl Replica {
    /// The same, as one whose name was found.
    pub(super) fn found_by_name(self) -> Self {
        Self {
            discovered: true,
            ..self
        }
    }

    /// Its place in the upstream.
    pub(super) fn place(&self) -> usize {
        self.endpoint.replica
    }

    /// Requests that it may have in flight.
    pub(super) fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// Takes an answer after `time` (`None`: it timed out) into account for how many slots it has. True when that has
    /// made them more.
    pub(super) fn found(&self, route: Route, time: Option<Duration>, now: Instant) -> bool {
        let Some(gradient) = &self.gradient else {
            return false;
        };
        let mut gradient = gradient.lock();
        let in_flight = usize::try_from(self.metrics.in_flight.get()).unwrap_or_default();
        gradient.observe(route, time, in_flight, now);
        let slots = gradient.limit();
        let before = self.slots.swap(slots, Ordering::Relaxed);
        if before != slots {
            self.metrics.slots.set(slots as i64);
            tracing::debug!(replica = self.url, before, slots, "replica has another capacity");
        }
        before < slots
    }

    /// The share of its slots that `in_flight` requests are.
    pub(super) fn share(&self, in_flight: usize) -> f64 {
        in_flight as f64 / self.slots() as f64
    }

    /// Whether it is a member that the hard rules let serve `class`.
    pub(super) fn is_open_to(&self, class: RouteClass) -> bool {
        self.marks.allows(class) && !self.is_leaving()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Says that it is a member, or no longer.
    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub(super) fn consecutive_failures(&self) -> u32 {
        self.health.lock().0.consecutive_failures()
    }

    /// Since when it has given no sign of life, if that is so.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.health.lock().1.since()
    }

    /// What was begun at `began` has waited for long.
    pub(super) fn keeps_waiting(&self, began: Instant) {
        self.health.lock().1.waits(began);
    }

    /// Takes what was learnt of something that was begun at `began` into account. True when the replica went out or came
    /// back by it.
    pub(super) fn learn(&self, event: Event, began: Instant, now: Instant) -> bool {
        let (health, silence) = &mut *self.health.lock();
        let changed = health.on(event);
        match event {
            Event::ProbeFailed | Event::RequestFailed => silence.failed(began),
            Event::ProbeOk | Event::RequestOk if health.is_healthy() => silence.answered(now),
            // It has yet to prove itself.
            Event::ProbeOk | Event::RequestOk => {}
        }
        if changed {
            let healthy = health.is_healthy();
            self.healthy.store(healthy, Ordering::Release);
            self.metrics.healthy.set(i64::from(healthy));
            self.metrics.came_to(if healthy {
                ReplicaChange::Healthy
            } else {
                ReplicaChange::Unhealthy
            });
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
                        self.metrics.came_to(ReplicaChange::NewAddresses);
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

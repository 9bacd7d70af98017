//! What the rest of the program may see of routing, and start.
//!
//! The administrative listener shows the snapshot; the program's start and end switch the background work.
//! Requests do not come through here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::Response;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::balance::spread::THRESHOLD;
pub use super::breaker::BreakerState;
use super::failover::Failover;
pub use super::failover::{Cause, FailoverStatus, LastShift, Mode, Sight, SteerError, Steered};
pub use super::health::score::Parts;
use super::link::Link;
pub use super::observed::{FirstByte, LastError};
use super::pool::{self, LaneLoad, Pool};
use super::replica::{Blueprint, Replica};
use super::{discovery, probe, scrape, tcp_state};
use crate::config::UpstreamProtocol;
use crate::config::upstreams::{BalancePolicy, DiscoveryConfig};
use crate::types::cluster::Cluster;
use crate::types::request::Dispatch;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// A view of all upstreams, and the switch of their background work.
#[derive(Clone)]
pub struct RoutingControl {
    pub(super) pools: Arc<[Arc<Pool>]>,
    pub(super) blueprints: Arc<[Blueprint]>,
    pub(super) policies: Arc<[BalancePolicy]>,
    pub(super) discoveries: Arc<[Option<DiscoveryConfig>]>,
    /// Of those upstreams that have, or may find, a standby.
    pub(super) failovers: Arc<[Option<Arc<Failover>>]>,
    /// To Redis, if that is shared.
    pub(super) link: Option<Arc<Link>>,
    pub(super) clock: Clock,
}

/// An operator's wish that was not carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct NotSteered {
    /// The upstream of which it was not.
    pub upstream: String,
    /// Why.
    pub error: SteerError,
    /// What had begun before, of other upstreams.
    pub begun: Vec<Steered>,
}

/// One upstream at one moment.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct UpstreamStatus {
    /// Its name in the configuration.
    pub name: String,
    /// What is spoken to its replicas.
    pub protocol: UpstreamProtocol,
    /// How a replica is chosen.
    pub policy: BalancePolicy,
    /// What waits for a slot, and what has one, by sort of request.
    pub lanes: Vec<LaneStatus>,
    /// Population variance of the loads of those replicas that serve in the cluster that has the writes, in percent
    /// squared.
    pub load_variance: f64,
    /// The variance above which balancing by health leans against the spread.
    pub load_variance_threshold: f64,
    /// Which of its clusters has the writes; nothing when it has one.
    pub failover: Option<FailoverStatus>,
    /// Its replicas, standby replicas last.
    pub replicas: Vec<ReplicaStatus>,
}

/// One lane of an upstream at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LaneStatus {
    /// Its name in the configuration.
    pub lane: &'static str,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that may be in flight, at all replicas of the cluster that has the writes.
    pub slots: usize,
    /// Requests that wait for a slot.
    pub queue: usize,
    /// The most that ever waited at once since the start.
    pub longest_queue: usize,
}

/// One replica at one moment.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ReplicaStatus {
    /// As configured.
    pub url: String,
    /// Where it runs.
    pub zone: Option<String>,
    /// What it is good for.
    pub labels: BTreeMap<String, String>,
    /// Whether it is no longer named and only ends what it has begun.
    pub leaving: bool,
    /// Whether it belongs to the standby cluster.
    pub standby: bool,
    /// Whether it is in use.
    pub healthy: bool,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that may be in flight.
    pub slots: usize,
    /// How well it serves, in (0, 1].
    pub score: f64,
    /// What the score is the product of.
    pub score_parts: Parts,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Whether its circuit breaker lets requests in.
    pub breaker: BreakerState,
    /// Milliseconds until an open one lets the next trial in; only while it is open.
    pub half_open_in_ms: Option<u64>,
    /// How long its answers took to begin lately; nothing without answers.
    pub first_byte: Option<FirstByte>,
    /// What it did wrong last.
    pub last_error: Option<LastError>,
    /// The addresses of its name.
    pub addresses: Vec<SocketAddr>,
}

impl RoutingControl {
    /// All upstreams in name order.
    pub fn snapshot(&self) -> Vec<UpstreamStatus> {
        let spoken = self.blueprints.iter().map(|blueprint| blueprint.protocol);
        let upstreams = self
            .pools
            .iter()
            .zip(spoken.zip(self.policies.iter().copied()))
            .zip(self.failovers.iter());
        let status = |((pool, settings), failover): ((_, _), &Option<Arc<Failover>>)| {
            status(pool, settings, failover.as_ref().map(|it| it.status()))
        };
        upstreams.map(status).collect()
    }

    /// Brings the gauges of failover up to date, which are not kept so.
    pub fn refresh_gauges(&self) {
        for failover in self.failovers.iter().flatten() {
            failover.refresh_gauges();
        }
    }

    /// The names of the upstreams that have, or may find, a standby.
    pub fn with_standby(&self) -> Vec<String> {
        let upstreams = self.pools.iter().zip(self.failovers.iter());
        let with_standby = upstreams.filter(|(_, failover)| failover.is_some());
        with_standby.map(|(pool, _)| pool.name.clone()).collect()
    }

    /// Has the writes of `upstream`, or of all that have a standby, go where an operator wants. What has begun, in name
    /// order.
    ///
    /// # Errors
    /// The first wish that was not carried out. Those before it were.
    pub async fn steer(&self, upstream: Option<&str>, mode: Mode) -> Result<Vec<Steered>, NotSteered> {
        let mut begun = Vec::new();
        for (pool, failover) in self.pools.iter().zip(self.failovers.iter()) {
            let is_meant = upstream.is_none_or(|name| name == pool.name);
            let Some(failover) = failover.as_ref().filter(|_| is_meant) else {
                continue;
            };
            match failover.steer(mode).await {
                Ok(steered) => begun.push(steered),
                Err(error) => {
                    let upstream = pool.name.clone();
                    return Err(NotSteered {
                        upstream,
                        error,
                        begun,
                    });
                }
            }
        }
        Ok(begun)
    }

    /// Starts the probes, which go through `upstream`, the look-ups of names and the metrics of scores. They end
    /// with `token`.
    pub fn spawn_background<S>(&self, upstream: &S, token: &CancellationToken, tracker: &TaskTracker)
    where
        S: Service<Dispatch, Response = Response<Body>, Error = Failure> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let looking = tcp_state::keep(self.pools.clone(), self.clock.clone());
        tracker.spawn(token.clone().run_until_cancelled_owned(looking));
        if let Some(link) = self.link.clone() {
            let keeping = async move { link.keep().await };
            tracker.spawn(token.clone().run_until_cancelled_owned(keeping));
        }
        for failover in self.failovers.iter().flatten() {
            tracker.spawn(token.clone().run_until_cancelled_owned(failover.clone().keep()));
        }
        let upstreams = self.pools.iter().zip(self.blueprints.iter());
        for (index, (pool, blueprint)) in upstreams.enumerate() {
            let publishing = pool.clone().keep_publishing();
            tracker.spawn(token.clone().run_until_cancelled_owned(publishing));
            let start = {
                let (pool, check, clock) = (pool.clone(), blueprint.check.clone(), self.clock.clone());
                let (scraping, name) = (blueprint.scrape.clone(), blueprint.name.clone());
                let metrics = blueprint.metrics.clone();
                let (upstream, token, tracker) = (upstream.clone(), token.clone(), tracker.clone());
                move |replica: Arc<Replica>| {
                    let ends = (token.clone(), replica.stop.clone());
                    let run = |task| {
                        let task = ends.1.clone().run_until_cancelled_owned(task);
                        tracker.spawn(ends.0.clone().run_until_cancelled_owned(task));
                    };
                    let probing = probe::probe(
                        pool.clone(),
                        replica.clone(),
                        check.clone(),
                        upstream.clone(),
                        clock.clone(),
                    );
                    run(probing.boxed());
                    if let Some(config) = scraping.clone() {
                        let counters = metrics.scrapes(&name, &replica.endpoint.authority());
                        let scraping = scrape::keep(replica.clone(), config, counters, clock.clone());
                        run(scraping.boxed());
                    }
                    if !replica.endpoint.is_literal() {
                        let looking = probe::keep_looking_up(replica, clock.clone());
                        run(looking.boxed());
                    }
                }
            };
            for (_, replica) in pool.members.all() {
                start(replica);
            }
            if let Some(config) = self.discoveries[index].clone() {
                let (control, pool) = (self.clone(), pool.clone());
                let searching = async move {
                    let read = || discovery::dns::read(config.clone()).boxed();
                    discovery::keep(&pool, &control.blueprints[index], &config, read, start).await;
                };
                tracker.spawn(token.clone().run_until_cancelled_owned(searching));
            }
        }
    }

    /// Returns once each upstream whose replicas are found by name has been searched for, and each that has a standby
    /// knows its epoch if that can be known; or after `limit`.
    pub async fn is_found(&self, limit: Duration) {
        let all = async {
            for (pool, _) in self
                .pools
                .iter()
                .zip(self.discoveries.iter())
                .filter(|(_, it)| it.is_some())
            {
                pool.is_searched().await;
            }
            for failover in self.failovers.iter().flatten() {
                failover.is_heard().await;
            }
        };
        let _ = timeout(limit, all).await;
    }
}

fn status(
    pool: &Arc<Pool>,
    (protocol, policy): (UpstreamProtocol, BalancePolicy),
    failover: Option<FailoverStatus>,
) -> UpstreamStatus {
    let now = pool.now();
    let (in_flight, lanes) = pool.load();
    let load_variance = pool.spread(&in_flight).variance;
    let replicas = pool.members.all().map(|(place, replica)| {
        pool.advance(&replica);
        let in_flight = pool::at(&in_flight, place);
        let score_parts = pool.score(&replica, in_flight);
        let (breaker, wait) = replica.door.state(now);
        ReplicaStatus {
            url: replica.url.clone(),
            zone: replica.zone.clone(),
            labels: replica.labels.clone(),
            leaving: replica.is_leaving(),
            standby: replica.cluster == Cluster::Standby,
            healthy: replica.is_healthy(),
            in_flight,
            slots: replica.slots(),
            score: score_parts.score(),
            score_parts,
            consecutive_failures: replica.consecutive_failures(),
            breaker,
            half_open_in_ms: (breaker == BreakerState::Open).then_some(wait.as_millis() as u64),
            first_byte: replica.observed.first_byte(now),
            last_error: replica.observed.last_error(now),
            addresses: replica.endpoint.addresses().to_vec(),
        }
    });
    let mut replicas: Vec<_> = replicas.collect();
    replicas.sort_by_key(|replica| replica.standby);
    UpstreamStatus {
        name: pool.name.clone(),
        protocol,
        policy,
        load_variance,
        load_variance_threshold: THRESHOLD,
        lanes: lanes.into_iter().map(lane_status).collect(),
        failover,
        replicas,
    }
}

fn lane_status(load: LaneLoad) -> LaneStatus {
    LaneStatus {
        lane: load.lane.as_str(),
        in_flight: load.in_flight,
        slots: load.slots,
        queue: load.queue,
        longest_queue: load.longest_queue,
    }
}

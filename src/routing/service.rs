//! The middleware: gives an attempt its replica and learns from what comes back.
//!
//! For `health` a head that comes back is a success, a connection that fails or breaks before one is a failure; the
//! breaker judges the whole exchange, which `admission` follows to the last byte of the body. A replica that keeps a
//! request waiting is probed, and once it is known to be unhealthy the reads that wait for it are ended, so that the
//! stage above can ask another; writes are not, because they may be carried out. A write that nobody took waits where
//! another cluster may soon have it.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Response, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};
use tower::{Layer, Service};

use super::admission::{FAIR_CHANCE, told_status, verdict};
use super::balance;
use super::breaker::Verdict;
use super::control::RoutingControl;
use super::failover::{Failover, Settings, Wish, instance_name};
use super::health::Event;
use super::health::ewma::Route;
use super::link::Link;
use super::metrics::RoutingMetrics;
use super::owners::Owners;
use super::place::Rules;
use super::pool::Pool;
use super::replica::{Blueprint, Replica};
use super::resolve::{Resolve, SystemResolver};
use crate::config::cache::CacheType;
use crate::config::{Config, UpstreamConfig};
use crate::types::chance::Chance;
use crate::types::cluster::{Cluster, Epoch};
use crate::types::endpoint::Slot;
use crate::types::outcome::Phases;
use crate::types::request::{Attempt, Dispatch, FailedAttempt, Placing, UpstreamId};
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind, grpc};

/// The longest wait for a slot of a request that has no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A write that was not taken waits so long for the verdict on its replica, and is tried again if there is none.
const DOUBT: Duration = Duration::from_millis(500);

/// Puts [`Routing`] before a service that speaks to one replica.
#[derive(Clone)]
pub struct RoutingLayer {
    pools: Arc<[Arc<Pool>]>,
    /// Of those upstreams that have, or may find, a standby.
    owners: Arc<[Option<Arc<Owners>>]>,
    clock: Clock,
}

impl RoutingLayer {
    /// Prepares the replicas of `config`; nothing runs yet (see [`RoutingControl::spawn_background`]).
    ///
    /// # Errors
    /// When a replica's URL, a probe's path or the URL of Redis cannot be read.
    pub fn new(
        config: &Config,
        clock: Clock,
        metrics: &RoutingMetrics,
    ) -> Result<(Self, RoutingControl), String> {
        let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
        Self::with_resolver(config, clock, metrics, &resolver)
    }

    pub(super) fn with_resolver(
        config: &Config,
        clock: Clock,
        metrics: &RoutingMetrics,
        resolver: &Arc<dyn Resolve>,
    ) -> Result<(Self, RoutingControl), String> {
        let redis = &config.cache.redis;
        let upstreams = &config.upstreams;
        let is_shared = config.cache.r#type == CacheType::Redis
            && upstreams.values().any(UpstreamConfig::may_have_standby);
        let link = match is_shared {
            true => Some(Arc::new(Link::new(redis.servers()?))),
            false => None,
        };
        let settings = Settings::new(&config.failover, &config.failback);
        let instance = instance_name();
        let mut failovers = Vec::new();
        let (mut pools, mut blueprints) = (Vec::new(), Vec::new());
        for (index, (name, upstream)) in upstreams.iter().enumerate() {
            let check = &upstream.health_check;
            if !check.path.starts_with('/') || check.path.parse::<http::Uri>().is_err() {
                return Err(format!(
                    "the health check path `{}` of `{name}` is not a path",
                    check.path
                ));
            }
            let seed = |what| ahash::RandomState::new().hash_one((index, what));
            let rules = Rules::new(config.zone.as_deref(), &upstream.affinity).map(Arc::new);
            let pool = Arc::new(Pool::new(
                name.clone(),
                (&upstream.lanes, upstream.connections.queue),
                (metrics.lanes(name), metrics.load_variance(name)),
                (
                    balance::build(upstream.balance.policy, seed("balance")),
                    rules.clone(),
                    Chance::seeded(seed("place")),
                ),
                clock.clone(),
            ));
            let blueprint = Blueprint {
                upstream: UpstreamId(index),
                name: name.clone(),
                breaker: config.circuit_breaker.clone(),
                check: check.clone(),
                scrape: upstream.scrape.clone(),
                protocol: upstream.protocol,
                capacity: upstream.capacity,
                connections: upstream.connections.clone(),
                resolver: resolver.clone(),
                rules,
                metrics: metrics.clone(),
            };
            for (place, from) in upstream.replicas.iter().chain(&upstream.standby).enumerate() {
                let cluster = Cluster::of(place >= upstream.replicas.len());
                pool.join(Arc::new(blueprint.build(from, place, cluster)?));
            }
            failovers.push(upstream.may_have_standby().then(|| {
                let shared = link.clone().map(|link| (link, &*redis.prefix));
                let remembered = shared
                    .clone()
                    .map(|(link, prefix)| (link, prefix, redis.timeout.0));
                let one_database = config.failover.shared_database;
                let owners = Arc::new(Owners::new(name, remembered, one_database, clock.clone()));
                let metrics = metrics.failover.of(name);
                let (pool, clock) = (pool.clone(), clock.clone());
                Failover::new((pool, owners), settings, &instance, shared, clock, metrics)
            }));
            pools.push(pool);
            blueprints.push(blueprint);
        }
        let pools: Arc<[Arc<Pool>]> = pools.into();
        let owners = failovers
            .iter()
            .map(|it: &Option<Arc<Failover>>| Some(it.as_ref()?.owners()));
        let owners = owners.collect();
        let control = RoutingControl {
            pools: pools.clone(),
            blueprints: blueprints.into(),
            policies: upstreams
                .values()
                .map(|upstream| upstream.balance.policy)
                .collect(),
            failovers: failovers.into(),
            link,
            discoveries: upstreams
                .values()
                .map(|upstream| upstream.discovery.clone())
                .collect(),
            clock: clock.clone(),
        };
        let layer = Self { pools, owners, clock };
        Ok((layer, control))
    }
}

impl<S> Layer<S> for RoutingLayer {
    type Service = Routing<S>;

    fn layer(&self, inner: S) -> Routing<S> {
        Routing {
            inner,
            pools: self.pools.clone(),
            owners: self.owners.clone(),
            clock: self.clock.clone(),
        }
    }
}

/// Chooses a replica, waits for a slot of it, and passes the attempt on.
#[derive(Clone)]
pub struct Routing<S> {
    inner: S,
    pools: Arc<[Arc<Pool>]>,
    owners: Arc<[Option<Arc<Owners>>]>,
    clock: Clock,
}

impl<S> Service<Attempt> for Routing<S>
where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = FailedAttempt;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, FailedAttempt>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FailedAttempt>> {
        self.inner.poll_ready(cx).map_err(nowhere)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let waiting = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, waiting);
        let upstream = attempt.fetch.upstream.0;
        let pool = self.pools.get(upstream).cloned();
        let owners = self.owners.get(upstream).cloned().flatten();
        let clock = self.clock.clone();
        Box::pin(async move {
            let pool = pool
                .ok_or_else(|| nowhere(Failure::new(FailureKind::NoReplica, "there is no such upstream")))?;
            route(inner, (&pool, owners.as_ref()), &attempt, &clock).await
        })
    }
}

fn nowhere(failure: Failure) -> FailedAttempt {
    FailedAttempt {
        failure,
        replica_unhealthy: false,
    }
}

async fn route<S>(
    mut inner: S,
    (pool, owners): (&Arc<Pool>, Option<&Arc<Owners>>),
    attempt: &Attempt,
    clock: &Clock,
) -> Result<Response<Body>, FailedAttempt>
where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure>,
{
    let asked = clock.now().monotonic;
    let limit = attempt.fetch.deadline.unwrap_or(asked + LONGEST_WAIT);
    let (safe, works) = (attempt.fetch.is_safe(), &attempt.fetch.works);
    let wish = match owners {
        Some(owners) => owners.wish(safe, works).await,
        None => Wish::plain(safe),
    };
    loop {
        let outcome = exchange(&mut inner, pool, (attempt, wish), (asked, limit), clock).await;
        match (outcome, owners) {
            (Ok((response, epoch)), Some(owners)) => return Ok(owners.follow(response, works.begins, epoch)),
            (Ok((response, _)), None) => return Ok(response),
            (Err((failed, Some(replica))), Some(_)) if was_not_taken(&failed, attempt) => {
                // A write that no replica has taken. Where another cluster may soon have it, it waits for that to be
                // known, rather than to be told of a cluster that is going.
                if clock.now().monotonic >= limit || !pool.may_be_held(wish) {
                    return Err(failed);
                }
                let judged = pool.is_out(&replica);
                let _ = timeout_at(limit.min(clock.now().monotonic + DOUBT), judged).await;
                poll_fn(|cx| inner.poll_ready(cx)).await.map_err(nowhere)?;
            }
            (Err((failed, _)), _) => return Err(failed),
        }
    }
}

/// Whether no byte of a write that may wait for its turn has gone anywhere.
fn was_not_taken(failed: &FailedAttempt, attempt: &Attempt) -> bool {
    let no_connection = matches!(
        failed.failure.kind,
        FailureKind::ConnectFailed | FailureKind::ConnectTimeout
    );
    no_connection
        && !failed.failure.sent
        && !attempt.fetch.is_safe()
        && attempt.placing == Placing::Queue
        && attempt.body.is_available()
}

/// One exchange with one replica: what came of it, with the epoch to which what it begins belongs, or with the replica
/// that failed.
async fn exchange<S>(
    inner: &mut S,
    pool: &Arc<Pool>,
    (attempt, wish): (&Attempt, Wish),
    (asked, limit): (Instant, Instant),
    clock: &Clock,
) -> Result<(Response<Body>, Epoch), (FailedAttempt, Option<Arc<Replica>>)>
where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure>,
{
    let nowhere = |failure| (nowhere(failure), None);
    let deadline = attempt.fetch.deadline;
    let choice = (&attempt.avoid, wish);
    let (taken, pass) = match attempt.placing {
        Placing::Queue => pool.take(&attempt.fetch, choice, limit).await,
        Placing::Elsewhere => pool.take_at_once(&attempt.fetch, choice, true),
        Placing::Hedge => pool.take_at_once(&attempt.fetch, choice, false),
    }
    .map_err(nowhere)?;
    let (replica, epoch) = (&taken.replica.clone(), taken.epoch);
    attempt.placed.set(replica.place());
    let started = clock.now().monotonic;
    if replica.endpoint.addresses().is_empty() {
        replica.look_up(started, deadline, clock).await;
    }
    let exchange = inner.call(Dispatch {
        fetch: attempt.fetch.clone(),
        body: attempt.body.clone(),
        endpoint: replica.endpoint.clone(),
        slot: Some(Slot::new(taken)),
    });
    let result = tokio::select! {
        biased;
        result = exchange => result,
        never = suspect(replica, started, deadline) => match never {},
        () = can_be_ended(pool, replica, attempt, wish) => {
            replica.metrics.ended();
            // Not held against the replica, nor by its breaker: the probes that put it out have said it already.
            let failed = FailedAttempt {
                failure: Failure::new(
                    FailureKind::UpstreamTimeout,
                    "the upstream did not answer and was found unhealthy",
                )
                .sent(),
                replica_unhealthy: true,
            };
            return Err((failed, None));
        }
    };
    replica
        .metrics
        .dispatched(result.as_ref().err().map(|failure| failure.kind));
    match result {
        Ok(mut response) => {
            replica.take_report(response.headers_mut(), clock.now().monotonic);
            pool.learn(replica, Event::RequestOk, started);
            let is_grpc = grpc::is_grpc(&attempt.fetch.parts.headers);
            match told_status(&response, is_grpc) {
                // Of the server before the replica, or of one that is overloaded.
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                    pool.failed(replica);
                }
                _ => pool.answered(
                    replica,
                    Route::of(&attempt.fetch),
                    clock.now().monotonic - started,
                ),
            }
            let phases = response.extensions_mut().get_or_insert_default::<Phases>();
            phases.queue = started - asked;
            let response = pass.follow(response, is_grpc, clock.now().monotonic - started);
            Ok((response, epoch))
        }
        Err(failure) => {
            let verdict = verdict(&failure, clock.now().monotonic - started);
            pass.settle(verdict);
            if failure.kind == FailureKind::UpstreamTimeout {
                replica.found(Route::of(&attempt.fetch), None, clock.now().monotonic);
            }
            if verdict == Verdict::Failure {
                replica.observed.failed(&failure, pool.now());
                pool.learn(replica, Event::RequestFailed, started);
                pool.failed(replica);
                replica.probe_soon.notify_one();
            }
            if matches!(
                failure.kind,
                FailureKind::ConnectFailed | FailureKind::ConnectTimeout
            ) {
                // The replica may have been replaced: the next attempt should know where it is now.
                replica.look_up(started, deadline, clock).await;
            }
            let failed = FailedAttempt {
                failure,
                replica_unhealthy: false,
            };
            Err((failed, Some(replica.clone())))
        }
    }
}

/// Has `replica` probed once it had its chance to answer: half the time to `deadline`, if that is less than
/// [`FAIR_CHANCE`], and has it noted since when it has not.
async fn suspect(replica: &Replica, started: Instant, deadline: Option<Instant>) -> Infallible {
    let half = deadline.map(|end| end.saturating_duration_since(started) / 2);
    sleep(half.map_or(FAIR_CHANCE, |half| half.min(FAIR_CHANCE))).await;
    replica.keeps_waiting(started);
    replica.probe_soon.notify_one();
    pending().await
}

/// Returns once the exchange of `attempt` with `replica` is better ended: the replica is unhealthy,
/// another can serve, and to ask twice does no harm (RFC 9110 section 9.2.1) and is possible.
async fn can_be_ended(pool: &Pool, replica: &Replica, attempt: &Attempt, wish: Wish) {
    if attempt.fetch.is_safe() {
        pool.better_elsewhere(replica, attempt.fetch.class, (&attempt.avoid, wish))
            .await;
        if attempt.body.is_available() {
            return;
        }
    }
    pending().await
}

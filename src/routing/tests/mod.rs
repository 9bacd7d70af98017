//! The stage over replicas that behave as told.
//!
//! [`Fake`] stands for the next stage, [`Names`] for the name service; time is paused, so hours pass at once.

mod breaker;
mod discovery;
mod failover;
mod fake;
mod frozen;
mod lanes;
mod names;
mod place;
mod placing;
mod probes;
mod resources;
mod score;
mod shown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use fake::*;

use super::health::Event;
use super::replica::Replica;
use super::resolve::{Lookup, Resolve};
use super::*;
use crate::config::upstreams::BalancePolicy;
use crate::config::{BreakerConfig, Config, ReplicaConfig, UpstreamConfig, Upstreams};
use crate::routing::control::{RoutingControl, UpstreamStatus};
use crate::types::cluster::Works;
use crate::types::endpoint::Slot;
use crate::types::ids::Principal;
use crate::types::outcome::{Phases, RouteClass};
use crate::types::request::{
    Attempt, BodySlot, Client, Dispatch, FailedAttempt, FetchHead, Lane, Placed, Placing, Timeouts,
    UpstreamId,
};
use crate::types::time::Clock;
use crate::types::units::{Ratio, Span};
use crate::types::{Body, Failure, FailureKind};

/// The lane that a path begins with, short if none.
fn lane_of(path: &str) -> Lane {
    let named = |lane: &Lane| path[1..].starts_with(lane.as_str());
    Lane::ALL.into_iter().find(named).unwrap_or(Lane::Short)
}

/// The route that a path is of.
fn template_of(path: &str) -> &'static str {
    if path.starts_with("/heavy") { "/heavy" } else { "/" }
}

/// The caller whose number is the query.
fn caller_of(query: Option<&str>) -> Option<Principal> {
    Some(Principal([query?.parse().unwrap(); 16]))
}

fn page() -> Request<Body> {
    Request::get("/").body(Body::Empty).unwrap()
}

struct Rig {
    fake: Fake,
    names: Names,
    routing: Routing<Fake>,
    control: RoutingControl,
    registry: prometheus::Registry,
    token: CancellationToken,
    tracker: TaskTracker,
}

fn replica(url: &str) -> ReplicaConfig {
    ReplicaConfig {
        url: url.to_owned(),
        ..ReplicaConfig::default()
    }
}

/// `count` replicas and `standby` ones, `slots` each, a queue of `queue`.
fn config(count: usize, standby: usize, slots: usize, queue: usize) -> UpstreamConfig {
    let mut config = UpstreamConfig {
        replicas: (0..count)
            .map(|n| replica(&format!("http://10.0.0.{n}:80")))
            .collect(),
        standby: (0..standby)
            .map(|n| replica(&format!("http://10.0.1.{n}:80")))
            .collect(),
        ..UpstreamConfig::default()
    };
    config.connections.limit = slots;
    config.connections.pool_share = Ratio(1.0);
    config.connections.queue = queue;
    // Which says beforehand who is next.
    config.balance.policy = BalancePolicy::RoundRobin;
    config
}

impl Rig {
    /// Without breakers, which would refuse what these replicas are asked in vain.
    fn new(config: UpstreamConfig) -> Self {
        let off = BreakerConfig {
            enabled: false,
            ..BreakerConfig::default()
        };
        Self::with_breakers(config, &off)
    }

    fn with_breakers(config: UpstreamConfig, breaker: &BreakerConfig) -> Self {
        Self::build(config, breaker, None)
    }

    fn build(config: UpstreamConfig, breaker: &BreakerConfig, zone: Option<&str>) -> Self {
        Self::of(&Config {
            upstreams: Upstreams::from([("api".to_owned(), config)]),
            zone: zone.map(str::to_owned),
            circuit_breaker: breaker.clone(),
            ..Config::default()
        })
    }

    fn of(config: &Config) -> Self {
        let registry = prometheus::Registry::new();
        let metrics = RoutingMetrics::register(&registry).unwrap();
        let fake = Fake::default();
        let api = &config.upstreams["api"];
        *fake.moods.lock() = vec![QUICK; api.replicas.len() + api.standby.len()];
        let names = Names::default();
        let resolver: Arc<dyn Resolve> = Arc::new(names.clone());
        let (layer, control) =
            RoutingLayer::with_resolver(config, Clock::System, &metrics, &resolver).unwrap();
        Self {
            routing: layer.layer(fake.clone()),
            fake,
            names,
            control,
            registry,
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    fn start(&self) {
        self.control
            .spawn_background(&self.fake, &self.token, &self.tracker);
    }

    async fn send(
        &self,
        path: &str,
        avoid: &[usize],
        total: Option<u64>,
    ) -> Result<Response<Body>, FailedAttempt> {
        let request = Request::get(path).body(Body::Empty).unwrap();
        self.send_request(request, avoid, total.map(Duration::from_secs))
            .await
    }

    async fn send_request(
        &self,
        request: Request<Body>,
        avoid: &[usize],
        total: Option<Duration>,
    ) -> Result<Response<Body>, FailedAttempt> {
        self.place(request, avoid, total, Placing::Queue).await.0
    }

    /// An attempt, and the place that was chosen for it.
    async fn place(
        &self,
        request: Request<Body>,
        avoid: &[usize],
        total: Option<Duration>,
        placing: Placing,
    ) -> (Result<Response<Body>, FailedAttempt>, Option<usize>) {
        self.about(request, avoid, total, placing, Works::default()).await
    }

    /// The same of a request that has to do with these works.
    async fn about(
        &self,
        request: Request<Body>,
        avoid: &[usize],
        total: Option<Duration>,
        placing: Placing,
        works: Works,
    ) -> (Result<Response<Body>, FailedAttempt>, Option<usize>) {
        let (parts, body) = request.into_parts();
        let attempt = Attempt {
            fetch: Arc::new(FetchHead {
                client: Client {
                    peer: "127.0.0.1:1".parse().unwrap(),
                    tls: false,
                    trusted: false,
                },
                upstream: UpstreamId(0),
                class: RouteClass::Listing,
                template: template_of(parts.uri.path()),
                lane: lane_of(parts.uri.path()),
                principal: caller_of(parts.uri.query()),
                parts,
                works,
                timeouts: Timeouts { total, idle: None },
                deadline: total.map(|total| Clock::System.now().monotonic + total),
            }),
            body: BodySlot::new(body),
            number: 0,
            avoid: avoid.into(),
            placing,
            placed: Placed::default(),
        };
        let placed = attempt.placed.clone();
        (self.routing.clone().call(attempt).await, placed.get())
    }

    async fn get(&self) -> Result<Response<Body>, FailedAttempt> {
        self.send("/", &[], Some(5)).await
    }

    fn replica(&self, place: usize) -> Arc<Replica> {
        let mut members = self.control.pools[0].members.all();
        members.find(|(at, _)| *at == place).unwrap().1
    }

    /// Something is learnt about the replica at `place`.
    fn learn(&self, place: usize, event: Event) {
        let now = Clock::System.now().monotonic;
        self.control.pools[0].learn(&self.replica(place), event, now);
    }

    fn status(&self) -> UpstreamStatus {
        self.control.snapshot().remove(0)
    }

    fn healthy(&self) -> Vec<bool> {
        self.status()
            .replicas
            .iter()
            .map(|replica| replica.healthy)
            .collect()
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family
            .get_metric()
            .iter()
            .map(|m| m.get_gauge().get_value() + m.get_counter().get_value())
            .sum()
    }
}

#[tokio::test(start_paused = true)]
async fn healthy_replicas_take_turns() {
    let rig = Rig::new(config(3, 1, 10, 10));
    for _ in 0..6 {
        rig.get().await.unwrap();
    }
    assert_eq!(rig.fake.replicas(), [0, 1, 2, 0, 1, 2]);
    assert_eq!(rig.metric("dify_edge_upstream_dispatch_total"), 6.0);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_failed_this_fetch_is_avoided_while_another_can_serve() {
    let rig = Rig::new(config(2, 0, 10, 10));
    for _ in 0..3 {
        rig.send("/", &[0], None).await.unwrap();
    }
    assert_eq!(rig.fake.replicas(), [1, 1, 1]);
    rig.send("/", &[0, 1], None).await.unwrap();
    assert_eq!(rig.fake.replicas().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn slots_in_use_never_exceed_what_is_usable_and_nobody_is_lost() {
    let rig = Arc::new(Rig::new(config(2, 0, 3, 1000)));
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let rig = rig.clone();
            tokio::spawn(async move {
                if n % 7 == 0 {
                    // Some leave while they wait or are served.
                    let gone = tokio::time::timeout(Duration::from_millis(n % 13), rig.send("/", &[], None));
                    let _ = gone.await;
                } else {
                    rig.send("/", &[n as usize % 2], None).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // One that left while it was served still counts as busy for the fake, but not for the pool.
    assert!(rig.fake.busiest.load(Ordering::SeqCst) >= 6);
    let status = rig.status();
    assert!(status.replicas.iter().all(|replica| replica.in_flight == 0));
    assert_eq!(
        (status.lanes[0].queue, rig.metric("dify_edge_upstream_in_flight")),
        (0, 0.0)
    );
    assert!(status.lanes[0].longest_queue > 100);
    for _ in 0..6 {
        rig.get().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_slots_are_ever_in_flight() {
    let rig = Arc::new(Rig::new(config(2, 0, 3, 1000)));
    let requests = (0..100).map(|_| rig.send("/", &[], None));
    for result in futures_util::future::join_all(requests).await {
        result.unwrap();
    }
    assert_eq!(rig.fake.busiest.load(Ordering::SeqCst), 6);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let rig = Rig::new(config(1, 0, 1, 100));
    let paths: Vec<_> = (0..10).map(|n| format!("/{n}")).collect();
    let requests = paths.iter().map(|path| rig.send(path, &[], None));
    let results = futures_util::future::join_all(requests).await;
    let served: Vec<_> = rig
        .fake
        .served
        .lock()
        .iter()
        .map(|(_, path)| path.clone())
        .collect();
    assert_eq!(served, paths);
    let last = results.into_iter().next_back().unwrap().unwrap();
    let phases = last.extensions().get::<Phases>().unwrap();
    assert!(phases.queue >= Duration::from_millis(9), "{phases:?}");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_leaving_it_makes_room() {
    let rig = Rig::new(config(1, 0, 1, 2));
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(300)));
    let mut first = Box::pin(rig.get());
    let mut second = Box::pin(rig.get());
    let mut third = Box::pin(rig.get());
    for waiting in [&mut first, &mut second, &mut third] {
        assert!(futures_util::poll!(waiting).is_pending());
    }
    assert_eq!(
        (
            rig.status().lanes[0].queue,
            rig.metric("dify_edge_upstream_queue_length")
        ),
        (2, 2.0)
    );
    let (refused, place) = rig.place(page(), &[], None, Placing::Queue).await;
    assert_eq!(
        (refused.unwrap_err().failure.kind, place),
        (FailureKind::Overloaded, None)
    );
    drop(second);
    assert_eq!(rig.status().lanes[0].queue, 1);
    let mut fourth = Box::pin(rig.get());
    assert!(futures_util::poll!(&mut fourth).is_pending());
    let (first, third) = tokio::join!(first, third);
    assert!(first.is_ok() && third.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_slot_ends_with_the_deadline_or_after_30_seconds() {
    let rig = Rig::new(config(1, 0, 1, 10));
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(3600)));
    let mut endless = Box::pin(rig.send("/", &[], None));
    assert!(futures_util::poll!(&mut endless).is_pending());
    for (total, waited) in [(Some(5), 5), (None, 30)] {
        let start = Clock::System.now().monotonic;
        let late = rig.send("/", &[], total).await.unwrap_err();
        assert_eq!(late.failure.kind, FailureKind::Overloaded);
        assert_eq!((Clock::System.now().monotonic - start).as_secs(), waited);
    }
    assert_eq!(rig.status().lanes[0].queue, 0);
    assert_eq!(rig.healthy(), [true]);
}

#[tokio::test(start_paused = true)]
async fn one_in_line_who_avoids_the_free_replica_does_not_hold_up_the_others() {
    let rig = Rig::new(config(2, 0, 1, 10));
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(1)));
    rig.fake.mood(1, Mood::Answers(Duration::from_secs(4)));
    let (long, short, waits, passes) = tokio::join!(
        rig.send("/long", &[0], Some(60)),
        rig.send("/short", &[1], Some(60)),
        rig.send("/waits", &[0], Some(60)),
        rig.send("/passes", &[], Some(60)),
    );
    assert!(long.is_ok() && short.is_ok() && waits.is_ok());
    let queue = |r: &Response<Body>| r.extensions().get::<Phases>().unwrap().queue.as_secs();
    assert_eq!((queue(&waits.unwrap()), queue(&passes.unwrap())), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_put_a_replica_out_and_only_the_healthy_serve() {
    for mood in [Mood::Refuses, Mood::Resets, HANGS] {
        let rig = Rig::new(config(2, 0, 10, 10));
        rig.fake.mood(0, mood);
        let mut failed = 0;
        for _ in 0..6 {
            let (result, place) = rig
                .place(page(), &[], Some(Duration::from_secs(5)), Placing::Queue)
                .await;
            failed += usize::from(result.is_err() && place == Some(0));
        }
        assert_eq!((failed, rig.healthy()), (3, vec![false, true]), "{mood:?}");
        assert_eq!(rig.status().replicas[0].consecutive_failures, 3);
        assert_eq!(rig.metric("dify_edge_upstream_healthy"), 1.0);
        rig.fake.replicas();
        for _ in 0..4 {
            rig.get().await.unwrap();
        }
        assert_eq!(rig.fake.replicas(), [1, 1, 1, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_that_the_wait_for_a_slot_used_up_is_not_held_against_the_replica() {
    let rig = Rig::new(config(1, 0, 1, 10));
    for (after, healthy) in [(10, true), (1000, false)] {
        rig.fake.mood(0, Mood::TimesOut(Duration::from_millis(after)));
        for _ in 0..3 {
            rig.get().await.unwrap_err();
        }
        assert_eq!(rig.healthy(), [healthy]);
    }
}

#[tokio::test(start_paused = true)]
async fn standby_replicas_serve_when_no_other_is_healthy_and_all_when_none_is() {
    let rig = Rig::new(config(2, 1, 10, 10));
    for n in 0..2 {
        rig.fake.mood(n, Mood::Refuses);
    }
    for _ in 0..6 {
        let _ = rig.get().await;
    }
    assert_eq!(rig.healthy(), [false, false, true]);
    rig.fake.replicas();
    for _ in 0..3 {
        rig.get().await.unwrap();
    }
    assert_eq!(rig.fake.replicas(), [2, 2, 2]);
    rig.fake.mood(2, Mood::Refuses);
    for _ in 0..3 {
        rig.get().await.unwrap_err();
    }
    assert_eq!(rig.healthy(), [false, false, false]);
    // Nothing is healthy: everything is tried again.
    rig.fake.replicas();
    rig.fake.mood(1, QUICK);
    let results = [rig.get().await.is_ok(), rig.get().await.is_ok()];
    let mut tried = rig.fake.replicas();
    tried.sort_unstable();
    assert_eq!(tried, [0, 1]);
    assert!(results.contains(&true));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_go_elsewhere_as_soon_as_another_replica_is_back() {
    let rig = Rig::new(config(2, 0, 1, 10));
    rig.fake.mood(0, Mood::Refuses);
    for _ in 0..6 {
        let _ = rig.get().await;
    }
    assert_eq!(rig.healthy(), [false, true]);
    rig.fake.mood(1, Mood::Answers(Duration::from_secs(3600)));
    let mut endless = Box::pin(rig.send("/", &[], None));
    assert!(futures_util::poll!(&mut endless).is_pending());
    rig.fake.mood(0, QUICK);
    rig.start();
    // The probes of replica 1 do not answer in time, but those of replica 0 do.
    rig.send("/", &[], Some(20)).await.unwrap();
}

#[tokio::test]
async fn wrong_urls_and_probe_paths_are_refused_with_a_reason() {
    let metrics = RoutingMetrics::register(&prometheus::Registry::new()).unwrap();
    let build = |config: UpstreamConfig| {
        let config = Config {
            upstreams: Upstreams::from([("api".to_owned(), config)]),
            ..Config::default()
        };
        RoutingLayer::new(&config, Clock::System, &metrics).err()
    };
    let mut wrong = config(1, 0, 1, 1);
    wrong.replicas[0].url = "api:5001".into();
    assert!(build(wrong).unwrap().contains("api:5001"));
    let mut wrong = config(1, 0, 1, 1);
    wrong.health_check.path = "health".into();
    assert!(build(wrong).unwrap().contains("health"));
    assert_eq!(build(config(1, 0, 1, 1)), None);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_without_replicas_is_a_failure_and_no_wait() {
    let rig = Rig::new(config(0, 0, 1, 1));
    assert_eq!(rig.get().await.unwrap_err().failure.kind, FailureKind::NoReplica);
}

#[test]
fn a_slot_is_given_back_when_it_is_dropped() {
    let held = Arc::new(());
    let slot = Slot::new(held.clone());
    assert_eq!(Arc::strong_count(&held), 2);
    drop(slot);
    assert_eq!(Arc::strong_count(&held), 1);
}

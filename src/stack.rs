//! The request path: the one place where stages meet.
//!
//! A request walks down through the stages once, a response walks up once. Each stage is generic over the one
//! below it and takes that one's request type, so a wrong order does not compile.

use http::{Request, Response};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer as _, Service};

use crate::cache::control::{CacheControl, Selection};
use crate::cache::{self, CacheLayer, CacheMetrics, SharedMetrics};
use crate::classify::ClassifyLayer;
use crate::config::Config;
use crate::config::cache::CacheType;
use crate::guard::control::GuardControl;
use crate::guard::{self, GuardLayer, GuardMetrics};
use crate::resilience::{RetryLayer, RetryMetrics};
use crate::routing::control::RoutingControl;
use crate::routing::{RoutingLayer, RoutingMetrics};
use crate::types::ids::{Tag, TagKind};
use crate::types::known::IdKind;
use crate::types::time::Clock;
use crate::types::{Body, Failure};
use crate::upstream::{Upstream, UpstreamMetrics};

/// The handles that a running stack leaves to others.
pub struct Controls {
    /// The cache.
    pub cache: CacheControl,
    shared: Option<cache::Background>,
    /// The guard, unless it is off.
    pub guard: Option<GuardControl>,
    sources: Option<guard::Background>,
    /// The replicas.
    pub routing: RoutingControl,
    upstream: Upstream,
}

impl Controls {
    /// Starts what the stages do beside requests: what caches tell each other, probes, look-ups of names, closing of
    /// idle connections. It ends with `stop`.
    pub fn spawn_background(&mut self, stop: &CancellationToken, tracker: &TaskTracker) {
        if let Some(shared) = self.shared.take() {
            shared.spawn(stop, tracker);
        }
        if let Some(sources) = self.sources.take() {
            sources.spawn(stop, tracker);
        }
        self.routing.spawn_background(&self.upstream, stop, tracker);
        self.upstream.spawn_background(stop.clone(), tracker);
    }
}

/// Puts the stages together. Tunnels, which outlive their requests, run on `tunnels`.
///
/// # Errors
/// When a part of `config` cannot be carried out, or a metric's name is taken.
pub fn build(
    config: &Config,
    clock: &Clock,
    registry: &Registry,
    tunnels: &TaskTracker,
) -> Result<
    (
        impl Service<Request<Body>, Response = Response<Body>, Error = Failure, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
        Controls,
    ),
    String,
> {
    let metric = |error: prometheus::Error| format!("metrics: {error}");

    // http::Request: which route, whose answer, what depends on it
    let classify = ClassifyLayer::new(config)?;
    // ClassifiedRequest: from memory, or one fetch for all who wait
    let (settings, metrics) = (
        config.cache.clone(),
        CacheMetrics::register(registry).map_err(metric)?,
    );
    let (cache, shared) = match settings.r#type {
        CacheType::Memory => (CacheLayer::new(settings, clock.clone(), metrics), None),
        CacheType::Redis => {
            let shared = SharedMetrics::register(registry).map_err(metric)?;
            let (cache, background) = CacheLayer::shared(settings, clock.clone(), metrics, shared)?;
            (cache, Some(background))
        }
    };
    // ClassifiedRequest: what does not exist is answered here
    let ends = cache.control();
    let on_gone = Box::new(move |kind| {
        if matches!(kind, IdKind::AppKey | IdKind::DatasetKey) {
            let ends = ends.clone();
            // It looks at every answer in memory.
            tokio::task::spawn_blocking(move || {
                ends.purge(&Selection::Tag(Tag::all(TagKind::Access)), false)
            });
        }
    });
    let metrics = GuardMetrics::register(registry).map_err(metric)?;
    let redis = (config.cache.r#type == CacheType::Redis).then_some(&config.cache.redis);
    let (guard, sources) = GuardLayer::new(config.guard.as_ref(), redis, clock, metrics, on_gone)?;
    // FetchRequest: try again what may be tried again
    let metrics = RetryMetrics::register(registry).map_err(metric)?;
    let seed = ahash::RandomState::new().hash_one("retries");
    let retry = RetryLayer::new(&config.upstreams, clock.clone(), &metrics, seed);
    // Attempt: a slot of a healthy replica
    let (routing, routing_control) = RoutingLayer::new(
        config,
        clock.clone(),
        &RoutingMetrics::register(registry).map_err(metric)?,
    )?;
    // Dispatch: a connection, the bytes
    let metrics = UpstreamMetrics::register(registry).map_err(metric)?;
    let upstream = Upstream::new(&config.upstreams, clock.clone(), &metrics, tunnels.clone())?;

    let controls = Controls {
        cache: cache.control(),
        shared,
        guard: guard.control(),
        sources: Some(sources),
        routing: routing_control,
        upstream: upstream.clone(),
    };
    let stack = classify.layer(guard.layer(cache.layer(retry.layer(routing.layer(upstream)))));
    Ok((stack, controls))
}

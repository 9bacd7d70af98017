//! The stage against origins that misbehave on purpose, over real sockets.
//!
//! A [`Rig`] is the stage with one replica; an [`Origin`] is that replica, written down move by move.

mod multiplex;
mod multiplex_ends;
mod origin;
mod pooling;
mod streaming;
mod switching;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::*;
use crate::config::{ReplicaConfig, UpstreamConfig, Upstreams};
use crate::types::cluster::Works;
use crate::types::endpoint::{Endpoint, Slot};
use crate::types::outcome::RouteClass;
use crate::types::request::{BodySlot, Client, Dispatch, FetchHead, Lane, Timeouts, UpstreamId};
use crate::types::time::Clock;
use crate::types::units::Span;
use crate::types::{Body, Failure};

pub(super) use origin::{Conn, Origin};

/// An upstream stage with one replica.
pub(super) struct Rig {
    pub(super) upstream: Upstream,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) registry: prometheus::Registry,
    pub(super) tunnels: TaskTracker,
    pub(super) timeouts: Timeouts,
}

pub(super) fn config(url: String) -> UpstreamConfig {
    UpstreamConfig {
        replicas: vec![ReplicaConfig {
            url,
            ..ReplicaConfig::default()
        }],
        ..UpstreamConfig::default()
    }
}

impl Rig {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self::with(config(format!("http://{address}")), None)
    }

    pub(super) fn with(config: UpstreamConfig, roots: Option<rustls::RootCertStore>) -> Self {
        let registry = prometheus::Registry::new();
        let metrics = UpstreamMetrics::register(&registry).unwrap();
        let tunnels = TaskTracker::new();
        let endpoint = Endpoint::parse(UpstreamId(0), 0, &config.replicas[0].url).unwrap();
        let upstreams = Upstreams::from([("api".to_owned(), config)]);
        let upstream =
            Upstream::with_roots(&upstreams, Clock::System, &metrics, tunnels.clone(), roots).unwrap();
        Self {
            upstream,
            endpoint: Arc::new(endpoint),
            registry,
            tunnels,
            timeouts: Timeouts {
                total: None,
                idle: None,
            },
        }
    }

    pub(super) fn dispatch(&self, request: Request<Body>) -> Dispatch {
        let (parts, body) = request.into_parts();
        Dispatch {
            fetch: Arc::new(FetchHead {
                parts,
                client: Client {
                    peer: "203.0.113.7:4711".parse().unwrap(),
                    tls: false,
                    trusted: false,
                },
                upstream: UpstreamId(0),
                class: RouteClass::Passthrough,
                template: "*",
                lane: Lane::Short,
                principal: None,
                works: Works::default(),
                timeouts: self.timeouts,
                deadline: self
                    .timeouts
                    .total
                    .map(|total| Clock::System.now().monotonic + total),
            }),
            body: BodySlot::new(body),
            endpoint: self.endpoint.clone(),
            slot: Some(Slot::new(())),
        }
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        self.upstream.clone().call(self.dispatch(request)).await
    }

    /// Sends and reads the whole answer.
    pub(super) async fn fetch(&self, request: Request<Body>) -> Result<(u16, Bytes), Failure> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    pub(super) fn connections(&self, state: &str) -> i64 {
        self.gauge("dify_edge_upstream_connections", state)
    }

    /// Streams in use.
    pub(super) fn upstream_streams(&self) -> i64 {
        self.gauge("dify_edge_upstream_streams", "api")
    }

    fn gauge(&self, name: &str, label: &str) -> i64 {
        let has_label = |m: &&prometheus::proto::Metric| m.get_label().iter().any(|l| l.value() == label);
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metric = family.and_then(|family| family.get_metric().iter().find(has_label));
        metric.map_or(0, |metric| metric.get_gauge().get_value() as i64)
    }
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "dify.example")
        .body(Body::Empty)
        .unwrap()
}

pub(super) fn post(path: &str, body: &'static str) -> Request<Body> {
    Request::post(path)
        .header("host", "dify.example")
        .header("content-length", body.len())
        .body(Body::from(Bytes::from_static(body.as_bytes())))
        .unwrap()
}

/// Gives every other task its turn, so that what is under way on loopback has arrived.
pub(super) async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// A body that is fed by the test, frame by frame.
pub(super) fn fed_body() -> (tokio::sync::mpsc::Sender<Result<Bytes, Failure>>, Body) {
    let (feed, frames) = tokio::sync::mpsc::channel(1);
    (feed, Body::stream(FedBody(frames)))
}

struct FedBody(tokio::sync::mpsc::Receiver<Result<Bytes, Failure>>);

impl http_body::Body for FedBody {
    type Data = Bytes;
    type Error = Failure;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Failure>>> {
        self.0
            .poll_recv(cx)
            .map(|item| item.map(|frame| frame.map(http_body::Frame::data)))
    }
}

pub(super) fn short_timeouts(total: Option<u64>, idle: Option<u64>) -> Timeouts {
    Timeouts {
        total: total.map(Duration::from_secs),
        idle: idle.map(Duration::from_secs),
    }
}

pub(super) fn span(ms: u64) -> Span {
    Span::millis(ms)
}

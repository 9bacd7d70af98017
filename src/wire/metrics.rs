//! What the stage counts. Labels are closed sets; a series is made when it is first used and kept at hand.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::types::FailureKind;
use crate::types::outcome::{CacheOutcome, RouteClass};

const BUCKETS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 300.0, 600.0,
];
const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const PHASES: [&str; 4] = ["queue", "connect", "first_byte", "total"];

/// A part of a request's time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Queue,
    Connect,
    FirstByte,
    Total,
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Protocol {
    H1,
    H2,
}

/// Why a connection was ended before a request was read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refused {
    /// Its peer holds too many.
    PerPeer,
    /// The TLS handshake failed or took too long.
    Handshake,
}

/// Counters, gauges and histograms of the stage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WireMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: IntCounterVec,
    requests_at: Vec<OnceLock<IntCounter>>,
    seconds: HistogramVec,
    seconds_at: Vec<OnceLock<Histogram>>,
    connections: [IntGauge; 2],
    refused: [IntCounter; 2],
    rejected: IntCounterVec,
    open_streams: IntGauge,
    bytes_sent: IntCounter,
    at_rest: IntGauge,
}

fn class_index(class: Option<RouteClass>) -> usize {
    class.map_or(RouteClass::ALL.len(), |class| class as usize)
}

fn class_name(class: Option<RouteClass>) -> &'static str {
    class.map_or("none", RouteClass::as_str)
}

fn registered<C>(registry: &Registry, collector: C) -> Result<C, prometheus::Error>
where
    C: prometheus::core::Collector + Clone + 'static,
{
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl WireMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let classes = RouteClass::ALL.len() + 1;
        let connections = registered(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "dify_edge_connections",
                    "Connections of clients, by protocol; upgraded ones count on",
                ),
                &["protocol"],
            )?,
        )?;
        let refused = registered(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "dify_edge_connections_refused_total",
                    "Connections that were ended before a request was read",
                ),
                &["reason"],
            )?,
        )?;
        Ok(Self(Arc::new(Inner {
            requests: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "dify_edge_requests_total",
                        "Requests by route class, cache outcome and status class",
                    ),
                    &["class", "cache", "status"],
                )?,
            )?,
            requests_at: slots(classes * CacheOutcome::ALL.len() * STATUSES.len()),
            seconds: registered(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "dify_edge_request_seconds",
                        "Time of requests by route class and phase",
                    )
                    .buckets(BUCKETS.to_vec()),
                    &["class", "phase"],
                )?,
            )?,
            seconds_at: slots(classes * PHASES.len()),
            connections: ["h1", "h2"].map(|protocol| connections.with_label_values(&[protocol])),
            refused: ["per_peer", "handshake"].map(|reason| refused.with_label_values(&[reason])),
            rejected: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "dify_edge_rejected_requests_total",
                        "Requests that this proxy answered with a failure of its own, by reason",
                    ),
                    &["reason"],
                )?,
            )?,
            open_streams: registered(
                registry,
                IntGauge::new("dify_edge_open_streams", "Event streams that are open")?,
            )?,
            at_rest: registered(
                registry,
                IntGauge::new(
                    "dify_edge_connections_at_rest",
                    "Connections over HTTP/1 whose buffers are put away until their next request",
                )?,
            )?,
            bytes_sent: registered(
                registry,
                IntCounter::new("dify_edge_bytes_sent_total", "Bytes of response content sent")?,
            )?,
        })))
    }

    pub(super) fn count_request(&self, class: Option<RouteClass>, cache: CacheOutcome, status: u16) {
        let status_class = usize::from(status / 100).clamp(1, STATUSES.len()) - 1;
        let index = (class_index(class) * CacheOutcome::ALL.len() + cache as usize) * STATUSES.len();
        self.0.requests_at[index + status_class]
            .get_or_init(|| {
                let labels = [class_name(class), cache.as_str(), STATUSES[status_class]];
                self.0.requests.with_label_values(&labels)
            })
            .inc();
    }

    pub(super) fn observe(&self, class: Option<RouteClass>, phase: Phase, time: Duration) {
        self.0.seconds_at[class_index(class) * PHASES.len() + phase as usize]
            .get_or_init(|| {
                let labels = [class_name(class), PHASES[phase as usize]];
                self.0.seconds.with_label_values(&labels)
            })
            .observe(time.as_secs_f64());
    }

    pub(super) fn count_rejected(&self, kind: FailureKind) {
        self.0.rejected.with_label_values(&[reason(kind)]).inc();
    }

    pub(super) fn count_refused(&self, why: Refused) {
        self.0.refused[why as usize].inc();
    }

    pub(super) fn count_sent(&self, bytes: u64) {
        self.0.bytes_sent.inc_by(bytes);
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self, protocol: Protocol) -> GaugeGuard {
        GaugeGuard::new(self.0.connections[protocol as usize].clone())
    }

    /// Counts a connection at rest until the guard is dropped.
    pub(super) fn at_rest(&self) -> GaugeGuard {
        GaugeGuard::new(self.0.at_rest.clone())
    }

    /// Counts an event stream until the guard is dropped.
    pub(super) fn stream(&self) -> GaugeGuard {
        GaugeGuard::new(self.0.open_streams.clone())
    }
}

fn slots<T>(count: usize) -> Vec<OnceLock<T>> {
    std::iter::repeat_with(OnceLock::new).take(count).collect()
}

fn reason(kind: FailureKind) -> &'static str {
    use FailureKind::*;
    match kind {
        Malformed => "malformed",
        UnsupportedMethod => "unsupported_method",
        UriTooLong => "uri_too_long",
        HeadersTooLarge => "headers_too_large",
        BodyTooLarge => "body_too_large",
        RequestTimeout => "request_timeout",
        TooManyConnections => "too_many_connections",
        TooManyUnknown => "too_many_unknown",
        ClientGone => "client_gone",
        NoRoute => "no_route",
        OnlyIfCached => "only_if_cached",
        Overloaded => "overloaded",
        NoReplica => "no_replica",
        Fenced => "fenced",
        OwnerGone => "owner_gone",
        Draining => "draining",
        ConnectFailed => "connect_failed",
        ConnectTimeout => "connect_timeout",
        UpstreamTimeout => "upstream_timeout",
        UpstreamReset => "upstream_reset",
    }
}

/// One more while it lives.
#[derive(Debug)]
pub(super) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

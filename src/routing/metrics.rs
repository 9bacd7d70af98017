//! What routing counts. Labels are names of the configuration and closed words, so their number is bounded.
//!
//! Handles are resolved when the replicas are set up. Connections are counted by the stage that owns them.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::balance::spread::THRESHOLD;
use crate::types::FailureKind;

/// Metrics of replicas and queues.
#[derive(Debug, Clone)]
pub struct RoutingMetrics {
    in_flight: IntGaugeVec,
    healthy: IntGaugeVec,
    queue: IntGaugeVec,
    dispatches: IntCounterVec,
    score: GaugeVec,
    load_variance: GaugeVec,
}

/// Handles for one replica.
#[derive(Debug)]
pub(super) struct ReplicaMetrics {
    pub(super) in_flight: IntGauge,
    pub(super) healthy: IntGauge,
    pub(super) score: Gauge,
    dispatches: [IntCounter; RESULTS.len()],
}

/// The closed list of how a dispatch ends.
const RESULTS: [&str; 7] = [
    "ok",
    "connect_failed",
    "connect_timeout",
    "timeout",
    "reset",
    "other",
    "replica_unhealthy",
];

impl RoutingMetrics {
    /// Creates the metrics and enters them into `registry`.
    ///
    /// # Errors
    /// When `registry` holds metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let replica = ["upstream", "replica"];
        let dispatches = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_dispatch_total",
                "Attempts sent to a replica, by how they ended.",
            ),
            &["upstream", "replica", "result"],
        )?;
        registry.register(Box::new(dispatches.clone()))?;
        let score = GaugeVec::new(
            Opts::new(
                "dify_edge_upstream_score",
                "How well a replica serves, from 0 to 1.",
            ),
            &replica,
        )?;
        registry.register(Box::new(score.clone()))?;
        let load_variance = GaugeVec::new(
            Opts::new(
                "dify_edge_upstream_load_variance",
                "Population variance of the shares of slots in use, in percent squared.",
            ),
            &["upstream"],
        )?;
        registry.register(Box::new(load_variance.clone()))?;
        let threshold = Gauge::new(
            "dify_edge_upstream_load_variance_threshold",
            "The variance above which balancing by health leans against the spread.",
        )?;
        threshold.set(THRESHOLD);
        registry.register(Box::new(threshold))?;
        Ok(Self {
            in_flight: gauge(
                "dify_edge_upstream_in_flight",
                "Requests in flight at a replica.",
                &replica,
            )?,
            healthy: gauge(
                "dify_edge_upstream_healthy",
                "1 while a replica is healthy.",
                &replica,
            )?,
            queue: gauge(
                "dify_edge_upstream_queue_length",
                "Requests that wait for a slot of an upstream.",
                &["upstream"],
            )?,
            dispatches,
            score,
            load_variance,
        })
    }

    pub(super) fn replica(&self, upstream: &str, replica: &str) -> ReplicaMetrics {
        let healthy = self.healthy.with_label_values(&[upstream, replica]);
        healthy.set(1);
        ReplicaMetrics {
            in_flight: self.in_flight.with_label_values(&[upstream, replica]),
            healthy,
            score: self.score.with_label_values(&[upstream, replica]),
            dispatches: RESULTS.map(|r| self.dispatches.with_label_values(&[upstream, replica, r])),
        }
    }

    pub(super) fn load_variance(&self, upstream: &str) -> Gauge {
        self.load_variance.with_label_values(&[upstream])
    }

    pub(super) fn queue(&self, upstream: &str) -> IntGauge {
        self.queue.with_label_values(&[upstream])
    }
}

impl ReplicaMetrics {
    /// Counts a dispatch; `None` is an answer.
    pub(super) fn dispatched(&self, failure: Option<FailureKind>) {
        let result = match failure {
            None => 0,
            Some(FailureKind::ConnectFailed) => 1,
            Some(FailureKind::ConnectTimeout) => 2,
            Some(FailureKind::UpstreamTimeout) => 3,
            Some(FailureKind::UpstreamReset) => 4,
            Some(_) => 5,
        };
        self.dispatches[result].inc();
    }

    /// Counts a dispatch that was ended because the replica had become unhealthy.
    pub(super) fn ended(&self) {
        self.dispatches[6].inc();
    }
}

//! What routing counts. Labels are names of the configuration and closed words, so their number is bounded.
//!
//! Handles are resolved when the replicas are set up. Connections are counted by the stage that owns them.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::breaker::BreakerState;
use crate::types::FailureKind;

/// Metrics of replicas and queues.
#[derive(Debug, Clone)]
pub struct RoutingMetrics {
    in_flight: IntGaugeVec,
    healthy: IntGaugeVec,
    queue: IntGaugeVec,
    dispatches: IntCounterVec,
    breaker: IntGaugeVec,
    transitions: IntCounterVec,
}

/// Handles for one replica.
#[derive(Debug)]
pub(super) struct ReplicaMetrics {
    pub(super) in_flight: IntGauge,
    pub(super) healthy: IntGauge,
    dispatches: [IntCounter; RESULTS.len()],
}

/// Handles for the breaker of one replica.
#[derive(Debug)]
pub(super) struct BreakerMetrics {
    state: IntGauge,
    transitions: [IntCounter; BreakerState::ALL.len()],
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
        let transitions = IntCounterVec::new(
            Opts::new(
                "dify_edge_breaker_transitions_total",
                "Changes of a replica's circuit breaker, by the state that it came to.",
            ),
            &["upstream", "replica", "to"],
        )?;
        registry.register(Box::new(transitions.clone()))?;
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
            breaker: gauge(
                "dify_edge_breaker_state",
                "A replica's circuit breaker: 0 closed, 1 half open, 2 open.",
                &replica,
            )?,
            transitions,
        })
    }

    pub(super) fn replica(&self, upstream: &str, replica: &str) -> ReplicaMetrics {
        let healthy = self.healthy.with_label_values(&[upstream, replica]);
        healthy.set(1);
        ReplicaMetrics {
            in_flight: self.in_flight.with_label_values(&[upstream, replica]),
            healthy,
            dispatches: RESULTS.map(|r| self.dispatches.with_label_values(&[upstream, replica, r])),
        }
    }

    pub(super) fn breaker(&self, upstream: &str, replica: &str) -> BreakerMetrics {
        BreakerMetrics {
            state: self.breaker.with_label_values(&[upstream, replica]),
            transitions: BreakerState::ALL.map(|to| {
                self.transitions
                    .with_label_values(&[upstream, replica, to.as_str()])
            }),
        }
    }

    pub(super) fn queue(&self, upstream: &str) -> IntGauge {
        self.queue.with_label_values(&[upstream])
    }
}

impl BreakerMetrics {
    /// Counts a change and shows the new state.
    pub(super) fn came_to(&self, state: BreakerState) {
        self.state.set(state as i64);
        self.transitions[state as usize].inc();
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

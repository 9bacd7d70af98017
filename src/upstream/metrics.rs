//! What the upstream stage counts. Labels are names of the configuration, so their number is bounded.
//!
//! `pool` keeps the gauges true under its lock. How attempts end is counted by routing, which sees them all.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of connections to replicas.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    connections: IntGaugeVec,
    stale: IntCounterVec,
}

/// Handles for one replica.
#[derive(Debug)]
pub(super) struct ReplicaMetrics {
    pub(super) idle: IntGauge,
    pub(super) active: IntGauge,
    pub(super) stale: IntCounter,
}

impl UpstreamMetrics {
    /// Creates the metrics and enters them into `registry`.
    ///
    /// # Errors
    /// When `registry` holds metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connections = IntGaugeVec::new(
            Opts::new("dify_edge_upstream_connections", "Connections to a replica."),
            &["upstream", "replica", "state"],
        )?;
        let stale = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_stale_connections_total",
                "Safe requests sent again on a new connection because the pooled one had just been closed.",
            ),
            &["upstream", "replica"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(stale.clone()))?;
        Ok(Self { connections, stale })
    }

    /// Ends the series of a replica that is gone.
    pub(super) fn forget(&self, upstream: &str, replica: &str) {
        // An error says that there is none, which is what is wanted.
        for state in ["idle", "active"] {
            let _ = self.connections.remove_label_values(&[upstream, replica, state]);
        }
        let _ = self.stale.remove_label_values(&[upstream, replica]);
    }

    pub(super) fn replica(&self, upstream: &str, replica: &str) -> ReplicaMetrics {
        ReplicaMetrics {
            idle: self.connections.with_label_values(&[upstream, replica, "idle"]),
            active: self.connections.with_label_values(&[upstream, replica, "active"]),
            stale: self.stale.with_label_values(&[upstream, replica]),
        }
    }
}

//! What the upstream stage counts. Labels are names of the configuration, so their number is bounded.
//!
//! `pool` keeps the gauges true under its lock. How attempts end is counted by routing, which sees them all.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of connections to replicas.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    connections: IntGaugeVec,
    opened: IntCounterVec,
    streams: IntGaugeVec,
    stale: IntCounterVec,
}

/// Handles for one replica.
#[derive(Debug)]
pub(super) struct ReplicaMetrics {
    pub(super) idle: IntGauge,
    pub(super) active: IntGauge,
    pub(super) opened: IntCounter,
    pub(super) streams: IntGauge,
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
        let opened = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_connections_opened_total",
                "Connections to a replica that were opened for requests.",
            ),
            &["upstream", "replica"],
        )?;
        let streams = IntGaugeVec::new(
            Opts::new(
                "dify_edge_upstream_streams",
                "Streams in use of the HTTP/2 connections to a replica.",
            ),
            &["upstream", "replica"],
        )?;
        let stale = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_stale_connections_total",
                "Requests sent again on another connection because the pooled one had just been closed.",
            ),
            &["upstream", "replica"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(opened.clone()))?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(stale.clone()))?;
        Ok(Self {
            connections,
            opened,
            streams,
            stale,
        })
    }

    /// Ends the series of a replica that is gone.
    pub(super) fn forget(&self, upstream: &str, replica: &str) {
        // An error says that there is none, which is what is wanted.
        for state in ["idle", "active"] {
            let _ = self.connections.remove_label_values(&[upstream, replica, state]);
        }
        let _ = self.opened.remove_label_values(&[upstream, replica]);
        let _ = self.streams.remove_label_values(&[upstream, replica]);
        let _ = self.stale.remove_label_values(&[upstream, replica]);
    }

    pub(super) fn replica(&self, upstream: &str, replica: &str) -> ReplicaMetrics {
        ReplicaMetrics {
            idle: self.connections.with_label_values(&[upstream, replica, "idle"]),
            active: self.connections.with_label_values(&[upstream, replica, "active"]),
            opened: self.opened.with_label_values(&[upstream, replica]),
            streams: self.streams.with_label_values(&[upstream, replica]),
            stale: self.stale.with_label_values(&[upstream, replica]),
        }
    }
}

//! What failover shows of itself. Labels are names of the configuration and closed words.

use std::time::Duration;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::record::{Cause, Mode};
use crate::types::cluster::Cluster;

/// The metrics of all upstreams.
#[derive(Debug, Clone)]
pub(in crate::routing) struct FailoverMetrics {
    epoch: IntGaugeVec,
    active: IntGaugeVec,
    held: IntGaugeVec,
    writes: IntGaugeVec,
    lease: IntGaugeVec,
    confirmed: GaugeVec,
    healthy: GaugeVec,
    owners: IntGaugeVec,
    shifts: IntCounterVec,
}

/// Handles for one upstream.
#[derive(Debug)]
pub(in crate::routing) struct UpstreamFailoverMetrics {
    epoch: IntGauge,
    active: [IntGauge; 2],
    held: IntGauge,
    writes: IntGauge,
    lease: IntGauge,
    confirmed: Gauge,
    healthy: [Gauge; 2],
    owners: IntGauge,
    shifts: [IntCounter; Cause::ALL.len()],
}

/// How an upstream stands.
#[derive(Debug)]
pub(super) struct Shown {
    /// 0 while it is not known.
    pub(super) epoch: u64,
    pub(super) active: Cluster,
    pub(super) mode: Mode,
    pub(super) writes: bool,
    pub(super) lease: bool,
    /// How long ago.
    pub(super) confirmed: Option<Duration>,
    pub(super) owners: u64,
}

impl FailoverMetrics {
    pub(in crate::routing) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counted = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let measured = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let shifts = IntCounterVec::new(
            Opts::new(
                "dify_edge_failover_shifts_total",
                "How often the writes of an upstream went to its other cluster, by cause.",
            ),
            &["upstream", "cause"],
        )?;
        registry.register(Box::new(shifts.clone()))?;
        let (upstream, cluster) = (["upstream"], ["upstream", "cluster"]);
        Ok(Self {
            epoch: counted(
                "dify_edge_failover_epoch",
                "The epoch of an upstream; 0 while it is not known.",
                &upstream,
            )?,
            active: counted(
                "dify_edge_failover_active",
                "1 for the cluster that has the writes of an upstream, as far as this instance knows.",
                &cluster,
            )?,
            held: counted(
                "dify_edge_failover_held",
                "1 while an operator holds the writes of an upstream at one cluster.",
                &upstream,
            )?,
            writes: counted(
                "dify_edge_failover_writes_open",
                "1 while writes to an upstream are served, 0 while they are refused because nobody knows where they belong.",
                &upstream,
            )?,
            lease: counted(
                "dify_edge_failover_lease_held",
                "1 while this instance decides where the writes of an upstream go.",
                &upstream,
            )?,
            confirmed: measured(
                "dify_edge_failover_confirmed_seconds",
                "Time since the epoch of an upstream was last confirmed; -1 before the first time.",
                &upstream,
            )?,
            healthy: measured(
                "dify_edge_failover_healthy",
                "Share of a cluster's capacity that is healthy, as all instances see it together, or this one when it cannot hear them.",
                &cluster,
            )?,
            owners: counted(
                "dify_edge_failover_owners",
                "Pieces of work whose cluster is remembered here.",
                &upstream,
            )?,
            shifts,
        })
    }

    pub(in crate::routing) fn of(&self, upstream: &str) -> UpstreamFailoverMetrics {
        let of = |cluster: Cluster| [upstream, cluster.as_str()];
        UpstreamFailoverMetrics {
            epoch: self.epoch.with_label_values(&[upstream]),
            active: Cluster::ALL.map(|cluster| self.active.with_label_values(&of(cluster))),
            held: self.held.with_label_values(&[upstream]),
            writes: self.writes.with_label_values(&[upstream]),
            lease: self.lease.with_label_values(&[upstream]),
            confirmed: self.confirmed.with_label_values(&[upstream]),
            healthy: Cluster::ALL.map(|cluster| self.healthy.with_label_values(&of(cluster))),
            owners: self.owners.with_label_values(&[upstream]),
            shifts: Cause::ALL.map(|cause| self.shifts.with_label_values(&[upstream, cause.as_str()])),
        }
    }
}

impl UpstreamFailoverMetrics {
    pub(super) fn show(&self, shown: &Shown) {
        self.epoch.set(shown.epoch as i64);
        for cluster in Cluster::ALL {
            self.active[cluster as usize].set(i64::from(cluster == shown.active));
        }
        self.held.set(i64::from(shown.mode != Mode::Auto));
        self.writes.set(i64::from(shown.writes));
        self.lease.set(i64::from(shown.lease));
        self.confirmed
            .set(shown.confirmed.map_or(-1.0, |since| since.as_secs_f64()));
        self.owners.set(shown.owners as i64);
    }

    pub(super) fn healthy(&self, cluster: Cluster, share: f64) {
        self.healthy[cluster as usize].set(share);
    }

    pub(super) fn shifted(&self, cause: Cause) {
        self.shifts[cause as usize].inc();
    }
}

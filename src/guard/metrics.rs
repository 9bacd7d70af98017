//! What the guard counts, with labels that are resolved at the start.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::known::KindStatus;
use crate::types::known::IdKind;

/// Counters and gauges of the guard.
#[derive(Debug, Clone)]
pub struct GuardMetrics {
    /// Requests of which everything they ask for is known.
    pub(super) known: IntCounter,
    /// Requests that ask for something of which nobody knows whether it exists.
    pub(super) unsure: IntCounter,
    /// Requests that ask for something that does not exist.
    pub(super) missing: IntCounter,
    refused: Vec<IntCounter>,
    would_refuse: Vec<IntCounter>,
    pub(super) false_refusals: IntCounter,
    pub(super) throttled: IntCounter,
    pub(super) found: IntCounter,
    pub(super) not_found: IntCounter,
    pub(super) no_budget: IntCounter,
    pub(super) lookup_failed: IntCounter,
    pub(super) learned: IntCounter,
    pub(super) peers_told: IntCounter,
    pub(super) peers_heard: IntCounter,
    pub(super) peers_dropped: IntCounter,
    pub(super) peers_connected: IntGauge,
    armed: IntGaugeVec,
    items: IntGaugeVec,
    loading: IntGaugeVec,
    bytes: IntGaugeVec,
    rate: GaugeVec,
    age: GaugeVec,
}

impl GuardMetrics {
    /// Registers the guard's metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauges = |name: &str, help: &str| {
            let metric = IntGaugeVec::new(Opts::new(name, help), &["kind"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let floats = |name: &str, help: &str| {
            let metric = GaugeVec::new(Opts::new(name, help), &["kind"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let by_kind = |metric: &IntCounterVec| {
            let of = |kind: &IdKind| metric.with_label_values(&[kind.as_str()]);
            IdKind::ALL.iter().map(of).collect()
        };
        let checks = counters(
            "dify_edge_guard_checks_total",
            "Requests that ask for things, by whether those exist",
            "result",
        )?;
        let lookups = counters(
            "dify_edge_guard_lookups_total",
            "Things looked up one by one in the database",
            "result",
        )?;
        let refused = counters(
            "dify_edge_guard_refusals_total",
            "Requests answered in Dify's place",
            "kind",
        )?;
        let would_refuse = counters(
            "dify_edge_guard_would_refuse_total",
            "Requests that would have been refused in `mode: enforce`",
            "kind",
        )?;
        Ok(Self {
            known: checks.with_label_values(&["known"]),
            unsure: checks.with_label_values(&["unsure"]),
            missing: checks.with_label_values(&["missing"]),
            refused: by_kind(&refused),
            would_refuse: by_kind(&would_refuse),
            false_refusals: counter(
                "dify_edge_guard_false_refusals_total",
                "Requests that would have been refused, and that Dify answered in another way",
            )?,
            throttled: counter(
                "dify_edge_guard_throttled_total",
                "Requests for unknown things answered with 429",
            )?,
            found: lookups.with_label_values(&["found"]),
            not_found: lookups.with_label_values(&["missing"]),
            no_budget: lookups.with_label_values(&["no_budget"]),
            lookup_failed: lookups.with_label_values(&["failed"]),
            learned: counter(
                "dify_edge_guard_learned_total",
                "Things that Dify's answers showed and that were not known",
            )?,
            peers_told: counter(
                "dify_edge_guard_peers_told_total",
                "Things that other instances were told of",
            )?,
            peers_heard: counter(
                "dify_edge_guard_peers_heard_total",
                "Things that other instances told of",
            )?,
            peers_dropped: counter(
                "dify_edge_guard_peers_dropped_total",
                "Things that other instances were not told of, for too many waited",
            )?,
            peers_connected: {
                let name = "dify_edge_guard_peers_connected";
                let metric = IntGauge::new(name, "Whether other instances can be told and heard")?;
                registry.register(Box::new(metric.clone()))?;
                metric
            },
            armed: gauges(
                "dify_edge_guard_armed",
                "Whether all that exists of a kind is known",
            )?,
            items: gauges("dify_edge_guard_items", "Things that are known")?,
            loading: gauges(
                "dify_edge_guard_loading_items",
                "Things that the reading of all that exists has found so far; 0 when none goes on",
            )?,
            bytes: gauges("dify_edge_guard_filter_bytes", "Memory of the filters")?,
            rate: floats(
                "dify_edge_guard_false_positive_rate",
                "Estimated share of missing things that a filter takes for known ones",
            )?,
            age: floats(
                "dify_edge_guard_age_seconds",
                "Time since a source last told all that exists",
            )?,
        })
    }

    pub(super) fn refused(&self, kind: IdKind) {
        self.refused[kind as usize].inc();
    }

    pub(super) fn would_refuse(&self, kind: IdKind) {
        self.would_refuse[kind as usize].inc();
    }

    pub(super) fn show(&self, status: &[KindStatus]) {
        for status in status {
            let label = &[status.kind.as_str()];
            self.armed.with_label_values(label).set(i64::from(status.armed));
            self.items
                .with_label_values(label)
                .set(status.filter.items as i64);
            self.bytes
                .with_label_values(label)
                .set(status.filter.bytes as i64);
            self.rate
                .with_label_values(label)
                .set(status.filter.estimated_false_positive_rate);
            self.loading.with_label_values(label).set(status.loading as i64);
            if let Some(age) = status.age {
                self.age.with_label_values(label).set(age.as_secs_f64());
            }
        }
    }
}

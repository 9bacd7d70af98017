//! What the resilience stage counts.
//!
//! The reasons are those of `decision`, upstreams those of the configuration, so the labels are closed sets. Connections
//! that were stale, and replaced before anything failed, are counted by the upstream stage.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::decision::Reason;

/// Metrics of retries and hedges.
#[derive(Debug, Clone)]
pub struct RetryMetrics {
    retries: [IntCounter; Reason::ALL.len()],
    refused: IntCounterVec,
    hedges: IntCounterVec,
    hedges_won: IntCounterVec,
}

/// Handles for one upstream.
#[derive(Debug, Clone)]
pub(super) struct UpstreamRetryMetrics {
    retries: [IntCounter; Reason::ALL.len()],
    /// What the budget did not let be tried again.
    pub(super) refused: IntCounter,
    /// Second requests that a replica was asked.
    pub(super) hedges: IntCounter,
    /// Those whose answer came first.
    pub(super) hedges_won: IntCounter,
}

impl RetryMetrics {
    /// Creates the metrics and enters them into `registry`.
    ///
    /// # Errors
    /// When `registry` holds metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let retries = counter(
            "dify_edge_upstream_retries_total",
            "Attempts made again, by what ended the one before.",
            "reason",
        )?;
        Ok(Self {
            retries: Reason::ALL.map(|reason| retries.with_label_values(&[reason.as_str()])),
            refused: counter(
                "dify_edge_retries_refused_total",
                "Requests that were not tried again because too many were.",
                "upstream",
            )?,
            hedges: counter(
                "dify_edge_hedges_total",
                "Slow reads that were asked a second time, at another replica.",
                "upstream",
            )?,
            hedges_won: counter(
                "dify_edge_hedges_won_total",
                "Second requests for slow reads whose answer came first.",
                "upstream",
            )?,
        })
    }

    pub(super) fn upstream(&self, name: &str) -> UpstreamRetryMetrics {
        UpstreamRetryMetrics {
            retries: self.retries.clone(),
            refused: self.refused.with_label_values(&[name]),
            hedges: self.hedges.with_label_values(&[name]),
            hedges_won: self.hedges_won.with_label_values(&[name]),
        }
    }
}

impl UpstreamRetryMetrics {
    pub(super) fn retried(&self, reason: Reason) {
        self.retries[reason as usize].inc();
    }
}

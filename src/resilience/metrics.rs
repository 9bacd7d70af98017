//! What the resilience stage counts.
//!
//! The reasons are those of `decision`, so the label is a closed set. Connections that were stale, and replaced
//! before anything failed, are counted by the upstream stage.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::decision::Reason;

/// Metrics of retries.
#[derive(Debug, Clone)]
pub struct RetryMetrics {
    retries: [IntCounter; Reason::ALL.len()],
}

impl RetryMetrics {
    /// Creates the metrics and enters them into `registry`.
    ///
    /// # Errors
    /// When `registry` holds metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let retries = IntCounterVec::new(
            Opts::new(
                "dify_edge_upstream_retries_total",
                "Attempts made again, by what ended the one before.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(retries.clone()))?;
        Ok(Self {
            retries: Reason::ALL.map(|reason| retries.with_label_values(&[reason.as_str()])),
        })
    }

    pub(super) fn retried(&self, reason: Reason) {
        self.retries[reason as usize].inc();
    }
}

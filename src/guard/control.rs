//! What others can see of a running guard.

use std::sync::Arc;

use serde::Serialize;

use super::known::KindStatus;
use super::known_ids::peers::{Peers, PeersReport};
use super::verdict::Shared;
use crate::config::GuardMode;

/// The handle.
#[derive(Debug, Clone)]
pub struct GuardControl {
    pub(super) shared: Arc<Shared>,
    pub(super) peers: Option<Arc<Peers>>,
}

/// How one kind of things is guarded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindReport {
    /// The kind.
    pub kind: &'static str,
    /// Whether all that exists of it is known.
    pub armed: bool,
    /// How long ago its source was last heard of, seconds.
    pub age_seconds: Option<f64>,
    /// How many are known.
    pub items: u64,
    /// How many the reading that goes on has found so far; 0 without one.
    pub loading: u64,
    /// Why the last reading failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl GuardControl {
    /// What is done about missing things.
    pub fn mode(&self) -> GuardMode {
        self.shared.mode
    }

    /// The kinds of which something is known, or of which a source failed.
    pub fn kinds(&self) -> Vec<KindReport> {
        let said = |status: &KindStatus| {
            status.armed || status.filter.items > 0 || status.loading > 0 || status.error.is_some()
        };
        let report = |status: KindStatus| KindReport {
            kind: status.kind.as_str(),
            armed: status.armed,
            age_seconds: status.age.map(|age| age.as_secs_f64()),
            loading: status.loading,
            items: status.filter.items as u64,
            error: status.error,
        };
        let status = self.shared.known.status();
        status.into_iter().filter(said).map(report).collect()
    }

    /// How this instance stands with its peers; none without a Redis.
    pub fn peers(&self) -> Option<PeersReport> {
        self.peers.as_ref().map(|peers| peers.report())
    }

    /// Brings the gauges up to date.
    pub fn refresh_gauges(&self) {
        self.shared.metrics.show(&self.shared.known.status());
    }
}

//! `failover` and `failback`: when the standby replicas of an upstream take over, and when they give back.

use serde::{Deserialize, Serialize};

use crate::types::units::{Ratio, Span};

/// When the writes of an upstream with `standby` replicas go to these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverConfig {
    /// A cluster of which less than this share of the capacity is healthy cannot keep the writes. Default 50%.
    pub min_healthy: Ratio,
    /// The other takes over when that has lasted so long. Default 5s.
    pub after: Span,
    /// With Redis: for how long one instance decides for all without renewing that, and an instance goes by what it
    /// heard last. Default 3s.
    pub lease_ttl: Span,
    /// Whether both clusters work on one database. Then what is there (conversations, runs, batches of documents) can be
    /// gone on with in the other cluster when its own is gone; a task that runs in a cluster is stopped there or nowhere.
    /// Default false: whatever was begun in a cluster that is gone is answered with 503.
    pub shared_database: bool,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            min_healthy: Ratio(0.5),
            after: Span::secs(5),
            lease_ttl: Span::secs(3),
            shared_database: false,
        }
    }
}

/// When they go back to `replicas`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailbackConfig {
    /// Once these have been healthy for so long. Default 60s.
    pub after: Span,
}

impl Default for FailbackConfig {
    fn default() -> Self {
        Self {
            after: Span::secs(60),
        }
    }
}

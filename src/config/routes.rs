//! `routes`: which upstream serves which path.

use serde::{Deserialize, Serialize};

/// One prefix. `/v1` matches `/v1` and `/v1/…`, not `/v10`; the longest match wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Path prefix, beginning with `/`.
    pub prefix: String,
    /// Name of an upstream under `upstreams`.
    pub upstream: String,
}

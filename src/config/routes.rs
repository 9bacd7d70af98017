//! `routes`: which upstream serves which path.

use serde::{Deserialize, Serialize};

use super::Config;

/// One prefix. `/v1` matches `/v1` and `/v1/…`, not `/v10`; the longest match wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Path prefix, beginning with `/`.
    pub prefix: String,
    /// Name of an upstream under `upstreams`.
    pub upstream: String,
}

/// Where the clients of dify-api ask.
const DIFY: [&str; 3] = ["/v1", "/console/api", "/api"];

impl Config {
    /// Whether some of dify-api's routes lead to the upstream `name`. Without `routes` all do to the only one, or to the
    /// one that is called `api`.
    pub fn serves_dify(&self, name: &str) -> bool {
        if self.routes.is_empty() {
            return self.upstreams.len() == 1 || name == "api";
        }
        let matches = |path: &str, prefix: &str| {
            let prefix = prefix.trim_end_matches('/');
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        DIFY.iter().any(|path| {
            let fitting = self.routes.iter().filter(|route| matches(path, &route.prefix));
            let longest = fitting.max_by_key(|route| route.prefix.trim_end_matches('/').len());
            longest.is_some_and(|route| route.upstream == name)
        })
    }
}

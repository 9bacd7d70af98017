//! The configuration as meant: checked values with their defaults, one file per stage of the same name.
//!
//! `load` reads what an operator wrote (file, environment, flags) and turns it into a [`Config`]. A key that
//! is here keeps its name and meaning.

pub mod affinity;
pub mod breaker;
pub mod cache;
pub mod expression;
pub mod failover;
pub mod guard;
pub mod listen;
pub mod load;
pub mod protocol;
pub mod redis;
pub mod retry;
pub mod routes;
pub mod scrape;
pub mod telemetry;
pub mod upstreams;

use serde::{Deserialize, Serialize};

use crate::types::units::Span;

pub use breaker::BreakerConfig;
pub use cache::CacheConfig;
pub use failover::{FailbackConfig, FailoverConfig};
pub use guard::{GuardConfig, GuardMode};
pub use listen::{AdminConfig, LimitsConfig, ListenConfig, TlsConfig, Token};
pub use protocol::UpstreamProtocol;
pub use routes::RouteConfig;
pub use telemetry::{AccessLog, LogConfig, LogFormat};
pub use upstreams::{ReplicaConfig, UpstreamConfig, Upstreams};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients connect. Default: `127.0.0.1:8080`, HTTP/1.1 and h2c.
    pub listen: Vec<ListenConfig>,
    /// The administrative listener.
    pub admin: AdminConfig,
    /// The servers behind, by name. At least one; when nobody names any, `api` at `http://127.0.0.1:5001`.
    pub upstreams: Upstreams,
    /// Which upstream serves which path; longest prefix wins. Default: everything goes to `api`, or to the
    /// only upstream there is.
    pub routes: Vec<RouteConfig>,
    /// Peers (CIDR) whose `X-Forwarded-*` and `Forwarded` are believed. Default: none.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Limits on connections and requests.
    pub limits: LimitsConfig,
    /// The response cache.
    pub cache: CacheConfig,
    /// Logs.
    pub log: LogConfig,
    /// How long requests and streams in flight may go on after SIGTERM or SIGINT. Default 30s.
    pub drain_timeout: Span,
    /// What does not exist is answered before it reaches dify-api. Default: not done.
    pub guard: Option<GuardConfig>,
    /// When a replica that fails too often is no longer asked.
    pub circuit_breaker: BreakerConfig,
    /// When the standby replicas of an upstream take over,
    pub failover: FailoverConfig,
    /// and when they give back.
    pub failback: FailbackConfig,
    /// Where this instance runs: replicas in the same zone come first. Default: zones play no part.
    pub zone: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![ListenConfig::default()],
            admin: AdminConfig::default(),
            upstreams: Upstreams::new(),
            routes: Vec::new(),
            trusted_proxies: Vec::new(),
            limits: LimitsConfig::default(),
            cache: CacheConfig::default(),
            log: LogConfig::default(),
            drain_timeout: Span::secs(30),
            guard: None,
            circuit_breaker: BreakerConfig::default(),
            failover: FailoverConfig::default(),
            failback: FailbackConfig::default(),
            zone: None,
        }
    }
}

//! `upstreams`: the servers behind the proxy, and how they are talked to.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::affinity::Affinity;
use super::protocol::UpstreamProtocol;
use super::retry::{HedgeConfig, RetryConfig};
use super::scrape::ScrapeConfig;
use crate::types::request::Lane;
use crate::types::units::{Ratio, Span};

/// Upstreams by name.
pub type Upstreams = BTreeMap<String, UpstreamConfig>;

/// A set of replicas that serve the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// The replicas; at least one, unless there is `discovery`.
    pub replicas: Vec<ReplicaConfig>,
    /// A second cluster that stands by: reads go there when no replica is healthy, or the only healthy one has just
    /// failed the request; writes once it has taken over (`failover`).
    pub standby: Vec<ReplicaConfig>,
    /// What is spoken to the replicas: `http1`; `h2c`, which is HTTP/2 in clear, for `http://` URLs; or `h2`, which is
    /// HTTP/2 over TLS, for `https://` URLs. gRPC needs one of the last two. Default `http1`.
    pub protocol: UpstreamProtocol,
    /// Requests that one replica serves at once, of which `connections.pool_share` are used; further ones wait here, not
    /// there. A number, or `auto`: then it is found by how the time to the first byte grows, beginning with 10; to know
    /// how long answers take without a queue, half of it is used for a second every three minutes. Never more than
    /// `connections.limit`. Default for what serves dify-api's routes: 10, which is what a stock dify-api
    /// container has (one worker of ten connections); otherwise as many as connections. With `h2c` and `h2`, where a
    /// connection carries 100 requests, 1250 whatever it serves, and never more than the connections carry.
    pub capacity: Option<Capacity>,
    /// Connections to one replica.
    pub connections: ConnectionsConfig,
    /// Time limits; route classes lengthen `total` (generation, upload, file).
    pub timeouts: TimeoutsConfig,
    /// Active probe.
    pub health_check: HealthCheckConfig,
    /// How the requests that a replica can have in flight are shared out.
    pub lanes: LanesConfig,
    /// Which replica is taken.
    pub balance: BalanceConfig,
    /// How what failed is tried again.
    pub retry: RetryConfig,
    /// Whether slow reads are asked a second time, at another replica.
    pub hedge: HedgeConfig,
    /// Replicas that are found by name while the proxy runs, beside those of `replicas` or instead of them.
    pub discovery: Option<DiscoveryConfig>,
    /// Which replicas serve which route classes, by label. Default: each serves all.
    pub affinity: Affinity,
    /// Where the resources of each replica are measured; for `weighted_health`.
    pub scrape: Option<ScrapeConfig>,
}

/// Where replicas are found: one of `dns` and `srv`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscoveryConfig {
    /// `name:port`: every address of the name is a replica (A records; AAAA where there are none).
    pub dns: Option<String>,
    /// The name of SRV records, such as `_http._tcp.api.default.svc.cluster.local`: every target is a replica, and those
    /// that do not have the lowest priority stand by.
    pub srv: Option<String>,
    /// The longest time from one reading to the next; a shorter TTL of the records counts, down to 1s. Default 5s.
    pub refresh: Span,
    /// Whether the replicas speak TLS. Default false. With `dns` their certificates must name their addresses.
    pub tls: bool,
    /// The DNS server to ask, `address:port`. Default: what `/etc/resolv.conf` says.
    pub server: Option<SocketAddr>,
    /// The zone of all that are found.
    pub zone: Option<String>,
    /// The labels of all that are found.
    pub labels: BTreeMap<String, String>,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            dns: None,
            srv: None,
            refresh: Span::secs(5),
            tls: false,
            server: None,
            zone: None,
            labels: BTreeMap::new(),
        }
    }
}

/// Requests that a replica serves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or `auto`")]
pub enum Capacity {
    /// That many.
    Fixed(usize),
    /// As many as are found to be good.
    Found(Auto),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auto {
    /// `auto`
    Auto,
}

impl Capacity {
    /// What a stock dify-api container has: one gunicorn worker of ten connections.
    pub const OF_DIFY: Self = Self::Fixed(10);
    /// `auto`
    pub const AUTO: Self = Self::Found(Auto::Auto);
}

/// One server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// `http://host:port` or `https://host:port`, without path. The name is looked up again every 2 s.
    pub url: String,
    /// Where it runs. Replicas in the proxy's own `zone` come first.
    #[serde(default)]
    pub zone: Option<String>,
    /// What it is good for; `affinity` goes by them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its own `capacity`, where it is not that of the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

/// Connections to one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionsConfig {
    /// What one replica can take. Default 100.
    pub limit: usize,
    /// Share of `limit` and `capacity` that is used; the rest is left to health probes and others. Default 80%.
    pub pool_share: Ratio,
    /// An idle connection is closed after this. Default 300s.
    pub idle_timeout: Span,
    /// Requests that may wait for a connection of the upstream, in each lane; when there are more, one of who has most
    /// of them gets 503. Default 1024.
    pub queue: usize,
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        Self {
            limit: 100,
            pool_share: Ratio(0.8),
            idle_timeout: Span::secs(300),
            queue: 1024,
        }
    }
}

impl UpstreamConfig {
    /// Whether it has, or may find, replicas that stand by.
    pub fn may_have_standby(&self) -> bool {
        !self.standby.is_empty() || self.discovery.as_ref().is_some_and(|it| it.srv.is_some())
    }

    /// Where its replicas are, as written: their URLs, then the name by which others are found.
    pub fn places(&self) -> Vec<String> {
        let urls = self.replicas.iter().map(|replica| replica.url.clone());
        let found = self
            .discovery
            .iter()
            .flat_map(|discovery| [&discovery.dns, &discovery.srv]);
        urls.chain(found.flatten().map(|name| format!("dns:{name}")))
            .collect()
    }
}

impl ConnectionsConfig {
    /// Connections to one replica at once; at least one.
    pub fn usable(&self) -> usize {
        self.usable_of(self.limit)
    }

    /// Requests in flight at a replica that serves `capacity` at once; at least one.
    pub fn usable_of(&self, capacity: usize) -> usize {
        ((capacity.min(self.limit) as f64 * self.pool_share.0) as usize).max(1)
    }
}

/// How the requests that a replica can have in flight are shared out among sorts of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "LanesAsTyped")]
pub struct LanesConfig {
    /// Requests that a person waits for. Default: a share of 30%, no limit.
    pub short: LaneConfig,
    /// Generations and other long streams. Default: a share of 40%, at most 70%.
    pub generation: LaneConfig,
    /// Uploads and downloads of files. Default: a share of 20%, at most 50%.
    pub upload: LaneConfig,
    /// What is fetched anew while the old answer is served. Default: a share of 10%, at most 30%.
    pub background: LaneConfig,
}

impl Default for LanesConfig {
    fn default() -> Self {
        let lane = |share, limit| LaneConfig {
            share: Ratio(share),
            limit: Ratio(limit),
        };
        Self {
            short: lane(0.3, 1.0),
            generation: lane(0.4, 0.7),
            upload: lane(0.2, 0.5),
            background: lane(0.1, 0.3),
        }
    }
}

impl LanesConfig {
    /// The settings of `lane`.
    pub fn of(&self, lane: Lane) -> LaneConfig {
        match lane {
            Lane::Short => self.short,
            Lane::Generation => self.generation,
            Lane::Upload => self.upload,
            Lane::Background => self.background,
        }
    }
}

/// Lanes of which some are not written, or not whole.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LanesAsTyped {
    short: LaneAsTyped,
    generation: LaneAsTyped,
    upload: LaneAsTyped,
    background: LaneAsTyped,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LaneAsTyped {
    share: Option<Ratio>,
    limit: Option<Ratio>,
}

impl From<LanesAsTyped> for LanesConfig {
    fn from(typed: LanesAsTyped) -> Self {
        let lane = |typed: LaneAsTyped, default: LaneConfig| LaneConfig {
            share: typed.share.unwrap_or(default.share),
            limit: typed.limit.unwrap_or(default.limit),
        };
        let default = Self::default();
        Self {
            short: lane(typed.short, default.short),
            generation: lane(typed.generation, default.generation),
            upload: lane(typed.upload, default.upload),
            background: lane(typed.background, default.background),
        }
    }
}

/// One sort of requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LaneConfig {
    /// When several lanes wait, the one that has the least of its share is served first. Half of the share of `short` the
    /// other lanes leave it together, whether it is wanted or not.
    pub share: Ratio,
    /// The most that it has of a replica, at least one request.
    pub limit: Ratio,
}

/// Time limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// Making a connection, TLS included. Default 1s.
    pub connect: Span,
    /// From asking to the last byte, for short requests. Default 5s.
    pub total: Span,
    /// Between two reads of bytes of a generation or a file. Default 300s.
    pub idle: Span,
    /// From asking to the last byte, for writes that are neither generation nor upload. Default 60s: a
    /// log-in hashes, an import fetches.
    pub write: Span,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            connect: Span::secs(1),
            total: Span::secs(5),
            idle: Span::secs(300),
            write: Span::secs(60),
        }
    }
}

/// Active probe of each replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheckConfig {
    /// Path that is asked with GET; 2xx is healthy. Default `/health`.
    pub path: String,
    /// The name of a gRPC service whose health is asked for instead (`grpc.health.v1.Health/Check`; empty: of the whole
    /// server). With `h2c` and `h2` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Time from one probe to the next. Default 5s.
    pub interval: Span,
    /// A probe without an answer for this long has failed. Default 1s.
    pub timeout: Span,
    /// Failures in a row (probes or requests) until the replica is left out. Default 3.
    pub unhealthy_after: u32,
    /// Good probes in a row until it is used again. Default 2.
    pub healthy_after: u32,
}

impl Default for HealthCheckConfig {
    fn default() -> Self {
        Self {
            path: "/health".into(),
            grpc: None,
            interval: Span::secs(5),
            timeout: Span::secs(1),
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }
}

/// How a replica is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceConfig {
    /// Among healthy replicas with a free slot. Default `weighted_health`.
    pub policy: BalancePolicy,
}

/// Names of the balancing policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancePolicy {
    /// Each in turn.
    RoundRobin,
    /// By health score over load.
    #[default]
    WeightedHealth,
    /// The one with the least share of its slots in use.
    LeastLoaded,
}

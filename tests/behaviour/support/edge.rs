//! The proxy inside the test's process, on ports of its own.

use std::net::SocketAddr;
use std::time::Duration;

use dify_edge::app::Edge;
use dify_edge::config::upstreams::BalancePolicy;
use dify_edge::config::{AccessLog, Config, ReplicaConfig, UpstreamConfig};
use dify_edge::types::time::Clock;
use dify_edge::types::units::Span;

use super::client::{Answer, Client};

/// A running proxy; it ends with the test's runtime, or by [`Running::drain`].
pub struct Running {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The administrative listener.
    pub admin: SocketAddr,
    edge: Edge,
}

/// The configuration before these origins that [`start`] begins with.
pub fn config(origins: &[SocketAddr]) -> Config {
    let mut config = Config::default();
    config.listen[0].address = "127.0.0.1:0".parse().expect("an address");
    config.admin.address = "127.0.0.1:0".parse().expect("an address");
    config.log.access = AccessLog::Off;
    let mut api = UpstreamConfig {
        replicas: origins.iter().map(replica).collect(),
        ..UpstreamConfig::default()
    };
    // Which says beforehand who is next; a test that is about balancing sets its own.
    api.balance.policy = BalancePolicy::RoundRobin;
    // So does one that is about probes.
    api.health_check.interval = Span::secs(3600);
    config.upstreams.insert("api".into(), api);
    config
}

/// One replica.
pub fn replica(address: &SocketAddr) -> ReplicaConfig {
    ReplicaConfig {
        url: format!("http://{address}"),
        ..ReplicaConfig::default()
    }
}

/// The only upstream of a configuration by [`config`].
pub fn api(config: &mut Config) -> &mut UpstreamConfig {
    config.upstreams.get_mut("api").expect("the upstream `api`")
}

/// Starts before these origins, with a configuration that `change` has had its way with.
pub async fn start(origins: &[SocketAddr], change: impl FnOnce(&mut Config)) -> Running {
    start_at(origins, Clock::System, change).await
}

/// The same with a clock.
pub async fn start_at(origins: &[SocketAddr], clock: Clock, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config(origins);
    change(&mut config);
    let edge = Edge::start(config, clock).await.expect("the proxy starts");
    Running {
        address: edge.addresses[0],
        admin: edge.admin,
        edge,
    }
}

impl Running {
    /// A new connection.
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        self.client().await.exchange(request).await
    }

    /// Drains it; the connections that had to be cut.
    pub async fn drain(self, limit: Duration) -> usize {
        self.edge.drain(limit).await
    }
}

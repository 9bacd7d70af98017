//! `upstreams.NAME.protocol`: what is spoken to replicas, and how much one connection then carries.
//!
//! `upstream` goes by it when it connects, `routing` for how many requests a replica may have in flight.

use serde::{Deserialize, Serialize};

use super::upstreams::ConnectionsConfig;

/// Streams that one HTTP/2 connection carries at once, where the replica allows so many.
pub const STREAMS: usize = 100;
/// Requests that a replica serves at once where many share a connection and nobody said how many they may be.
const CAPACITY: usize = 1250;

/// What is spoken to the replicas of an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2 in clear, by prior knowledge (RFC 9113 section 3.3), many requests on a connection.
    H2c,
    /// HTTP/2 over TLS, agreed on by ALPN.
    H2,
}

impl UpstreamProtocol {
    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
            Self::H2 => "h2",
        }
    }

    /// Whether it is HTTP/2.
    pub fn is_multiplexed(self) -> bool {
        self != Self::Http1
    }
}

impl ConnectionsConfig {
    /// Requests in flight at a replica that serves `capacity` at once, as far as that is known; at least one.
    pub fn in_flight(&self, protocol: UpstreamProtocol, capacity: Option<usize>) -> usize {
        match (protocol.is_multiplexed(), capacity) {
            (false, Some(capacity)) => self.usable_of(capacity),
            (false, None) => self.usable(),
            (true, capacity) => {
                let share = capacity.unwrap_or(CAPACITY) as f64 * self.pool_share.0;
                (share as usize).clamp(1, self.usable() * STREAMS)
            }
        }
    }

    /// The most requests in flight at a replica, whatever it serves.
    pub fn most_in_flight(&self, protocol: UpstreamProtocol) -> usize {
        match protocol.is_multiplexed() {
            false => self.usable(),
            true => self.usable() * STREAMS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_requests_share_connections_a_replica_may_have_a_thousand_in_flight() {
        let connections = ConnectionsConfig::default();
        let of = |protocol, capacity| connections.in_flight(protocol, capacity);
        assert_eq!(of(UpstreamProtocol::Http1, None), 80);
        assert_eq!(of(UpstreamProtocol::Http1, Some(10)), 8);
        assert_eq!(of(UpstreamProtocol::H2c, None), 1000);
        assert_eq!(of(UpstreamProtocol::H2, Some(10)), 8);
        assert_eq!(of(UpstreamProtocol::H2, Some(1_000_000)), 8000);
        let one = ConnectionsConfig {
            limit: 1,
            ..connections
        };
        assert_eq!(one.in_flight(UpstreamProtocol::H2c, None), 100);
        assert_eq!(one.most_in_flight(UpstreamProtocol::H2c), 100);
    }
}

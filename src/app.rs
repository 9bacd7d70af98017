//! Builds the parts from a configuration, starts them, and ends them again.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Config;
use crate::types::time::Clock;

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A certificate or key could not be used.
    #[error("{0}")]
    Tls(String),
    /// A part of the configuration cannot be carried out.
    #[error("{0}")]
    Config(String),
}

/// A proxy that is running inside this process.
#[derive(Debug)]
pub struct Edge {
    /// Where clients connect, in the order of `listen`; ports are the real ones.
    pub addresses: Vec<SocketAddr>,
    /// Where the administrative listener is.
    pub admin: SocketAddr,
}

impl Edge {
    /// Binds every listener, starts the background work and serves until [`Edge::drain`].
    ///
    /// # Errors
    /// When an address, a certificate or an upstream of `config` cannot be used.
    #[allow(clippy::unused_async)]
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let _ = (config, clock);
        Err(StartError::Config("not built yet".into()))
    }

    /// Turns readiness off, stops accepting, lets what is in flight finish for at most `limit`.
    /// Returns how many connections had to be cut.
    pub async fn drain(self, limit: Duration) -> usize {
        let _ = limit;
        0
    }
}

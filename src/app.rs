//! Builds the parts from a configuration, starts them, and ends them again.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, AdminParts};
use crate::config::Config;
use crate::stack;
use crate::types::time::Clock;
use crate::wire::{Wire, WireMetrics};

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
    draining: CancellationToken,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    tracker: TaskTracker,
}

impl Edge {
    /// Binds every listener, starts the background work and serves until [`Edge::drain`].
    ///
    /// # Errors
    /// When an address, a certificate or an upstream of `config` cannot be used.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let registry = Registry::new();
        let (stack, controls) = stack::build(&config, &clock, &registry)?;
        let metrics = WireMetrics::register(&registry)
            .map_err(|error| StartError::Config(format!("metrics: {error}")))?;
        let wire = Wire::bind(&config, metrics, clock)?;
        let admin = Admin::bind(config.admin.address)
            .await
            .map_err(|source| StartError::Bind { address: config.admin.address, source })?;

        let (draining, stop, tracker) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let (addresses, admin_address) = (wire.addresses(), admin.address());
        controls.routing.spawn_background(&stop, &tracker);
        let parts = AdminParts {
            registry,
            config: config.redacted(),
            cache: controls.cache,
            routing: controls.routing,
            draining: draining.clone(),
        };
        tracker.spawn(admin.serve(parts, stop.clone()));
        let serving = tokio::spawn(wire.serve(stack, draining.clone(), stop.clone(), tracker.clone()));
        Ok(Self { addresses, admin: admin_address, draining, stop, serving, tracker })
    }

    /// Turns readiness off, stops accepting, lets what is in flight finish for at most `limit`.
    /// Returns whether everything finished by itself.
    pub async fn drain(mut self, limit: Duration) -> bool {
        self.draining.cancel();
        let finished = tokio::time::timeout(limit, &mut self.serving).await.is_ok();
        self.stop.cancel();
        self.tracker.close();
        // Whatever is cut now ends at its next poll.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
        finished
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.draining.cancel();
        self.stop.cancel();
        self.serving.abort();
    }
}

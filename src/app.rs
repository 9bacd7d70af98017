//! Builds the parts from a configuration, starts them, and ends them again.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, AdminParts, Auth};
use crate::classify;
use crate::config::Config;
use crate::stack;
use crate::types::time::Clock;
use crate::wire::{BindError, Wire, WireMetrics};

/// How long the first clients wait for Redis to be connected to, and for replicas to be found.
const WARM_UP: Duration = Duration::from_millis(500);

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

impl From<BindError> for StartError {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Listen { address, source } => Self::Bind { address, source },
            BindError::Tls(text) => Self::Tls(text),
        }
    }
}

/// A proxy that is running inside this process. Dropping it ends it at once.
#[derive(Debug)]
pub struct Edge {
    /// Where clients connect, in the order of `listen`; ports are the real ones.
    pub addresses: Vec<SocketAddr>,
    /// Where the administrative listener is.
    pub admin: SocketAddr,
    draining: CancellationToken,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// Clients' connections, upgraded ones among them.
    connections: TaskTracker,
    background: TaskTracker,
}

impl Edge {
    /// Binds every listener, starts the background work and serves until [`Edge::drain`].
    ///
    /// # Errors
    /// When an address, a certificate or an upstream of `config` cannot be used.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let registry = Registry::new();
        let (connections, background) = (TaskTracker::new(), TaskTracker::new());
        let (stack, mut controls) =
            stack::build(&config, &clock, &registry, &connections).map_err(StartError::Config)?;
        let metrics = WireMetrics::register(&registry)
            .map_err(|error| StartError::Config(format!("metrics: {error}")))?;
        let auth = Auth::new(&config.admin).map_err(StartError::Config)?;
        let wire = Wire::bind(&config, metrics, clock)?;
        let admin = Admin::bind(config.admin.address)
            .await
            .map_err(|source| StartError::Bind {
                address: config.admin.address,
                source,
            })?;

        let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
        let (addresses, admin_address) = (wire.addresses(), admin.address());
        controls.spawn_background(&stop, &background);
        controls.cache.is_warm(WARM_UP).await;
        controls.routing.is_found(WARM_UP).await;
        let parts = AdminParts {
            registry,
            config: config.redacted(),
            cache: controls.cache,
            routing: controls.routing,
            guard: controls.guard,
            auth,
            templates: classify::route_templates(),
            draining: draining.clone(),
        };
        background.spawn(admin.serve(parts, stop.clone()));
        let serving = tokio::spawn(wire.serve(stack, draining.clone(), stop.clone(), connections.clone()));
        Ok(Self {
            addresses,
            admin: admin_address,
            draining,
            stop,
            serving,
            connections,
            background,
        })
    }

    /// Turns readiness off, stops accepting, lets what is in flight finish for at most `limit`.
    /// Returns how many connections had to be cut.
    pub async fn drain(mut self, limit: Duration) -> usize {
        self.draining.cancel();
        let finished = tokio::time::timeout(limit, &mut self.serving).await.is_ok();
        let cut = if finished { 0 } else { self.connections.len() };
        self.stop.cancel();
        self.background.close();
        // Whatever is cut now ends at its next poll.
        let ended = async { tokio::join!(self.connections.wait(), self.background.wait()) };
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        cut
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.draining.cancel();
        self.stop.cancel();
        self.serving.abort();
    }
}

//! Stage `wire`: the connections of clients, and HTTP on them.
//!
//! `listener` accepts, `tls` encrypts, `connection` drives HTTP/1 or HTTP/2 by hyper; `screen` judges raw
//! HTTP/1 before hyper sees it, `limits` both protocols; `stall` ends HTTP/2 streams that nobody reads. `recall` answers
//! what is repeated byte for byte. `service` hands requests to the stages as
//! `http::Request<Body>` with a [`Client`](crate::types::request::Client) among the extensions, in origin
//! form and with the authority in one `Host` field, whatever the client spoke. `respond` turns failures into
//! answers; `access_log` and `metrics` keep the books.

mod access_log;
mod connection;
mod inbound;
mod limits;
mod link;
mod listener;
mod metrics;
mod outgoing;
mod preview;
mod recall;
pub mod respond;
mod screen;
mod service;
mod stall;
mod tls;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::access_log::Ledger;
use self::connection::Shared;
use self::listener::{Acceptor, Caps};
pub use self::metrics::WireMetrics;
pub use self::preview::preview;
use self::recall::Recall;
use self::tls::Certificate;
use crate::config::{Config, LimitsConfig};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// Why a listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A certificate or key could not be used.
    #[error("{0}")]
    Tls(String),
}

/// The bound listeners.
#[derive(Debug)]
pub struct Wire {
    listeners: Vec<Bound>,
    limits: Arc<LimitsConfig>,
    trusted: Arc<[ipnet::IpNet]>,
    ledger: Arc<Ledger>,
}

#[derive(Debug)]
struct Bound {
    socket: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Certificate>>,
}

impl Wire {
    /// Binds every address of `listen` and reads the certificates. Connections queue in the kernel until
    /// [`Self::serve`].
    ///
    /// # Errors
    /// When an address cannot be bound, or a certificate or key cannot be used.
    pub fn bind(config: &Config, metrics: WireMetrics, clock: Clock) -> Result<Self, BindError> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        for listen in &config.listen {
            let address = listen.address;
            let wrong = |source| BindError::Listen { address, source };
            let tls = listen.tls.as_ref().map(Certificate::load).transpose()?;
            let socket = listener::open(address).map_err(wrong)?;
            listeners.push(Bound {
                address: socket.local_addr().map_err(wrong)?,
                socket,
                tls: tls.map(Arc::new),
            });
        }
        Ok(Self {
            listeners,
            limits: Arc::new(config.limits.clone()),
            trusted: config.trusted_proxies.clone().into(),
            ledger: Arc::new(Ledger::new(metrics, clock, &config.log)),
        })
    }

    /// Where clients connect, in the order of `listen`, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|bound| bound.address).collect()
    }

    /// Serves requests with `stack`. Once `drain` is cancelled nothing is accepted, idle connections are
    /// closed and the others end with what is in flight on them; returns when all have ended. `stop` cuts
    /// what is left. `connections` counts the open ones, upgraded ones among them; it must be used for
    /// nothing else.
    pub async fn serve<S>(
        self,
        stack: S,
        drain: CancellationToken,
        stop: CancellationToken,
        connections: TaskTracker,
    ) where
        S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
        S::Future: Send,
    {
        let shared = Arc::new(Shared {
            limits: self.limits.clone(),
            ledger: self.ledger,
            drain: drain.clone(),
            stop,
            recall: Arc::new(Recall::new()),
        });
        let caps = Caps::new(self.limits.connections, self.limits.connections_per_peer);
        let mut tasks = JoinSet::new();
        for bound in self.listeners {
            let listener = match TcpListener::from_std(bound.socket) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, address = %bound.address, "cannot use a listener");
                    continue;
                }
            };
            if let Some(certificate) = bound.tls.clone() {
                tasks.spawn(certificate.follow(drain.clone()));
            }
            let acceptor = Acceptor {
                listener,
                tls: bound.tls,
                trusted: self.trusted.clone(),
                caps: caps.clone(),
                shared: shared.clone(),
                tracker: connections.clone(),
                stack: stack.clone(),
            };
            tasks.spawn(acceptor.run());
        }
        drain.cancelled().await;
        while tasks.join_next().await.is_some() {}
        connections.close();
        connections.wait().await;
    }
}

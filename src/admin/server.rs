//! Serves the administrative pages over HTTP/1.1: the listener and its connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::auth::Auth;
use super::routes;
use crate::cache::control::CacheControl;
use crate::guard::control::GuardControl;
use crate::routing::control::RoutingControl;

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 64;

/// What the pages show and change.
pub struct AdminParts {
    /// Where the metrics are.
    pub registry: Registry,
    /// The effective configuration, without secrets.
    pub config: serde_json::Value,
    /// The cache's handle.
    pub cache: CacheControl,
    /// The guard's handle, unless it is off.
    pub guard: Option<GuardControl>,
    /// The replicas' handle.
    pub routing: RoutingControl,
    /// Who may write.
    pub auth: Auth,
    /// The templates of the routes that a purge may name.
    pub templates: Vec<&'static str>,
    /// Cancelled when the proxy drains: it is then not ready.
    pub draining: CancellationToken,
}

/// A bound administrative listener.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The real address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; goes on while the proxy drains, so that probes and metrics see it.
    pub async fn serve(self, parts: AdminParts, stop: CancellationToken) {
        let parts = Arc::new(parts);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the administrative listener could not accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (parts, stop) = (parts.clone(), stop.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(move |request| {
                    let parts = parts.clone();
                    async move { Ok::<_, Infallible>(routes::respond(request, &parts).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .max_headers(64)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

//! Serves the administrative pages over HTTP/1.1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cache::CacheControl;
use crate::routing::RoutingControl;

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 64;

/// What the pages show.
pub struct AdminParts {
    /// Where the metrics are.
    pub registry: Registry,
    /// The effective configuration, without secrets.
    pub config: serde_json::Value,
    /// The cache's handle.
    pub cache: CacheControl,
    /// The replicas' handle.
    pub routing: RoutingControl,
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
                    let response = page(&request, &parts);
                    async move { Ok::<_, std::convert::Infallible>(response) }
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

fn page<B>(request: &Request<B>, parts: &AdminParts) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = answer(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET and HEAD are served here\n",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/live" => answer(StatusCode::OK, "text/plain", "live\n"),
        "/ready" => ready(parts),
        "/metrics" => metrics(parts),
        "/config" => json(StatusCode::OK, &parts.config),
        _ => answer(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /live, /ready, /metrics or /config\n",
        ),
    }
}

/// Ready means: new connections are accepted. Whether replicas are healthy is told beside it but does not
/// decide: what is in memory can still be served.
fn ready(parts: &AdminParts) -> Response<Full<Bytes>> {
    let ready = !parts.draining.is_cancelled();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let upstreams = serde_json::to_value(parts.routing.snapshot()).unwrap_or_default();
    json(
        status,
        &serde_json::json!({ "ready": ready, "draining": !ready, "upstreams": upstreams }),
    )
}

fn metrics(parts: &AdminParts) -> Response<Full<Bytes>> {
    parts.cache.refresh_gauges();
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&parts.registry.gather(), &mut text) {
        Ok(()) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            format!("cannot encode metrics: {error}\n"),
        ),
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    answer(status, "application/json", format!("{value:#}\n"))
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

//! The middleware: turns a fetch into attempts, within the fetch's deadline and the upstream's budget.
//!
//! All attempts share one head and one body. The body is taken by the attempt that sends it; once it is gone
//! there is no further attempt. What happens to one fetch stands in `fetching`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tower::{Layer, Service};

use super::fetching::Fetching;
use super::metrics::RetryMetrics;
use super::upstream::Upstream;
use crate::config::Upstreams;
use crate::types::request::{Attempt, FailedAttempt, FetchRequest};
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

/// Puts [`Retry`] before a service that makes attempts.
#[derive(Clone)]
pub struct RetryLayer {
    upstreams: Arc<[Arc<Upstream>]>,
    clock: Clock,
}

impl RetryLayer {
    /// Retries as `config` says, by the time of `clock`. What is random in it begins with `seed`.
    pub fn new(config: &Upstreams, clock: Clock, metrics: &RetryMetrics, seed: u64) -> Self {
        let now = clock.now().monotonic;
        let upstreams = config.iter().enumerate().map(|(index, (name, upstream))| {
            let seed = seed.wrapping_add(index as u64);
            Arc::new(Upstream::new(upstream, seed, metrics.upstream(name), now))
        });
        Self {
            upstreams: upstreams.collect(),
            clock,
        }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            upstreams: self.upstreams.clone(),
            clock: self.clock.clone(),
        }
    }
}

/// Tries a fetch again where that is safe.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    upstreams: Arc<[Arc<Upstream>]>,
    clock: Clock,
}

impl<S> Service<FetchRequest> for Retry<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = FailedAttempt> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(|failed| failed.failure)
    }

    fn call(&mut self, request: FetchRequest) -> Self::Future {
        let waiting = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, waiting);
        let upstream = self.upstreams.get(request.head.upstream.0).cloned();
        let clock = self.clock.clone();
        Box::pin(async move {
            let upstream =
                upstream.ok_or_else(|| Failure::new(FailureKind::NoReplica, "there is no such upstream"))?;
            Fetching::new(inner, upstream, clock, request).run().await
        })
    }
}

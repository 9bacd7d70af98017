//! The middleware: turns a fetch into attempts, up to three, within the fetch's deadline.
//!
//! All attempts share one head and one body. The body is taken by the attempt that sends it; once it is gone
//! there is no further attempt.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use smallvec::SmallVec;
use tower::{Layer, Service, ServiceExt};

use super::decision::reason_to_retry;
use super::metrics::RetryMetrics;
use crate::types::request::{Attempt, BodySlot, FailedAttempt, FetchRequest};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// Puts [`Retry`] before a service that makes attempts.
#[derive(Debug, Clone)]
pub struct RetryLayer {
    clock: Clock,
    metrics: RetryMetrics,
}

impl RetryLayer {
    /// Retries by the time of `clock`.
    pub fn new(clock: Clock, metrics: RetryMetrics) -> Self {
        Self { clock, metrics }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

/// Tries a fetch again where that is safe.
#[derive(Debug, Clone)]
pub struct Retry<S> {
    inner: S,
    clock: Clock,
    metrics: RetryMetrics,
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
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        let clock = self.clock.clone();
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let body = BodySlot::new(request.body);
            let fetch = Arc::new(request.head);
            let mut avoid = SmallVec::new();
            let mut number = 0;
            loop {
                let attempt = Attempt {
                    fetch: fetch.clone(),
                    body: body.clone(),
                    number,
                    avoid: avoid.clone(),
                };
                let failed = match inner.ready().await {
                    Ok(ready) => ready.call(attempt).await,
                    Err(failed) => Err(failed),
                };
                let failed = match failed {
                    Ok(response) => return Ok(response),
                    Err(failed) => failed,
                };
                let in_time = fetch.deadline.is_none_or(|end| clock.now().monotonic < end);
                match reason_to_retry(&failed, fetch.is_safe(), number) {
                    Some(reason) if in_time && body.is_available() => metrics.retried(reason),
                    _ => return Err(failed.failure),
                }
                avoid.extend(failed.replica);
                number += 1;
            }
        })
    }
}

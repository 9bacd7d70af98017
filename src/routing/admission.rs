//! Lets requests in to one replica as its `breaker` says, and sees to it that each tells how it ended.
//!
//! [`Door`] is the breaker with its lock, its metrics and its log. A request holds a [`Pass`] from the choice of
//! the replica to the last byte of the answer, and dropping it says that nothing was learnt: a client that leaves
//! gives a trial back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::{Breaker, BreakerState, Change, Ticket, Verdict};
use super::metrics::BreakerMetrics;
use super::pool::Pool;
use super::replica::Replica;
use crate::config::BreakerConfig;
use crate::types::{Body, Failure, FailureKind, grpc};

/// A time-out is held against a replica only if it was waited for, for this long in all: the time may have gone
/// while the request waited for a slot, or while the client read slowly.
pub(super) const FAIR_CHANCE: Duration = Duration::from_secs(1);

/// The breaker of one replica, if there is one.
pub(super) struct Door {
    replica: String,
    breaker: Option<Mutex<Breaker>>,
    /// Whether the breaker is closed, to be read without its lock.
    closed: AtomicBool,
    count_500: bool,
    metrics: BreakerMetrics,
}

impl Door {
    /// Open to everybody at first. `replica` is its name in the log.
    pub(super) fn new(replica: String, config: &BreakerConfig, metrics: BreakerMetrics) -> Self {
        Self {
            replica,
            breaker: config.enabled.then(|| Mutex::new(Breaker::new(config))),
            closed: AtomicBool::new(true),
            count_500: config.count_500,
            metrics,
        }
    }

    /// Whether everybody is let in.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether nobody is let in, not even as a trial.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        let (state, left) = self.state(now);
        state == BreakerState::Open && !left.is_zero()
    }

    /// Whether a request would be let in now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        self.is_closed() || self.locked(|breaker| breaker.admits(now)).unwrap_or(true)
    }

    /// The state, and the time until it is half open (zero unless it is open).
    pub(super) fn state(&self, now: Instant) -> (BreakerState, Duration) {
        self.locked(|breaker| (breaker.state(), breaker.half_open_in(now)))
            .unwrap_or((BreakerState::Closed, Duration::ZERO))
    }

    /// Lets trials in if the time has come. True when that is a change.
    pub(super) fn advance(&self, now: Instant) -> bool {
        !self.is_closed()
            && self
                .locked(|breaker| self.tell(breaker.advance(now)))
                .unwrap_or(false)
    }

    /// Lets a request in, or does not.
    pub(super) fn enter(&self, now: Instant) -> Option<Ticket> {
        let entered = self.locked(|breaker| {
            self.tell(breaker.advance(now));
            breaker.enter(now)
        });
        entered.unwrap_or(Some(Ticket::default()))
    }

    /// Takes into account how a request ended. True when others may be let in by it, or no longer.
    pub(super) fn settle(&self, ticket: Ticket, verdict: Verdict, now: Instant) -> bool {
        self.locked(|breaker| self.tell(breaker.settle(ticket, verdict, now))) == Some(true)
            || !self.is_closed()
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> Option<T> {
        self.breaker.as_ref().map(|breaker| act(&mut breaker.lock()))
    }

    /// Makes a change known; called under the lock, so that changes are told in their order.
    fn tell(&self, change: Option<Change>) -> bool {
        let Some(change) = change else { return false };
        self.closed
            .store(change.to == BreakerState::Closed, Ordering::Release);
        self.metrics.came_to(change.to);
        let Change {
            failures, results, ..
        } = change;
        match change.to {
            BreakerState::Open => tracing::warn!(
                replica = self.replica,
                failures,
                results,
                sleep = ?change.sleep,
                "circuit breaker is open: too many requests failed"
            ),
            BreakerState::HalfOpen => tracing::info!(
                replica = self.replica,
                "circuit breaker is half open: trials are let in"
            ),
            BreakerState::Closed => tracing::info!(
                replica = self.replica,
                failures,
                results,
                "circuit breaker is closed: its trials succeeded"
            ),
        }
        true
    }

    fn is_failure(&self, status: StatusCode) -> bool {
        match status.as_u16() {
            502..=504 => true,
            500 => self.count_500,
            _ => false,
        }
    }
}

/// The status that says how `response` speaks of its server; of an answer to gRPC it can be another than its own.
pub(super) fn told_status(response: &Response<Body>, is_grpc: bool) -> StatusCode {
    let told =
        grpc::Status::of(response.headers()).filter(|_| is_grpc && response.status() == StatusCode::OK);
    told.and_then(grpc::Status::as_server_error)
        .unwrap_or(response.status())
}

/// The verdict on a replica that `failure` came from after `waited` for it.
pub(super) fn verdict(failure: &Failure, waited: Duration) -> Verdict {
    match failure.kind {
        FailureKind::ConnectFailed | FailureKind::ConnectTimeout | FailureKind::UpstreamReset => {
            Verdict::Failure
        }
        FailureKind::UpstreamTimeout if waited >= FAIR_CHANCE => Verdict::Failure,
        _ => Verdict::Unknown,
    }
}

/// The leave of one request to ask one replica.
pub(super) struct Pass {
    pool: Arc<Pool>,
    replica: Arc<Replica>,
    /// Gone once it is settled.
    ticket: Option<Ticket>,
}

impl Pass {
    pub(super) fn new(pool: Arc<Pool>, replica: Arc<Replica>, ticket: Ticket) -> Self {
        Self {
            pool,
            replica,
            ticket: Some(ticket),
        }
    }

    /// Says how the request ended.
    pub(super) fn settle(mut self, verdict: Verdict) {
        self.end(verdict);
    }

    fn end(&mut self, verdict: Verdict) {
        if let Some(ticket) = self.ticket.take() {
            self.pool.settle(&self.replica, ticket, verdict);
        }
    }

    /// Says how the exchange ends whose answer begins with the head of `response`, which was waited for so long:
    /// now, or with the last byte of the body. Of an answer to gRPC the end has to say how the call went.
    pub(super) fn follow(self, response: Response<Body>, is_grpc: bool, waited: Duration) -> Response<Body> {
        let status = told_status(&response, is_grpc);
        if self.replica.door.is_failure(status) {
            self.replica.observed.refused(status, self.pool.now());
            self.settle(Verdict::Failure);
            return response;
        }
        let in_trailers = is_grpc
            && response.status() == StatusCode::OK
            && grpc::is_grpc(response.headers())
            && !response.headers().contains_key(grpc::GRPC_STATUS);
        if response.body().is_empty() {
            self.settle(match in_trailers {
                true => Verdict::Failure,
                false => Verdict::Success,
            });
            return response;
        }
        response.map(|inner| {
            Body::stream(Followed {
                inner,
                pass: self,
                waited,
                since: None,
                untold: in_trailers,
            })
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.end(Verdict::Unknown);
    }
}

/// A body whose end is told.
struct Followed {
    inner: Body,
    pass: Pass,
    /// For how long the replica was waited for.
    waited: Duration,
    /// Since when it is.
    since: Option<Instant>,
    /// Whether the end has yet to say how a call went.
    untold: bool,
}

impl Followed {
    /// The trailers say how a call went.
    fn told(&mut self, trailers: &HeaderMap) {
        let Some(status) = grpc::Status::of(trailers).filter(|_| self.untold) else {
            return;
        };
        self.untold = false;
        let Pass { pool, replica, .. } = &self.pass;
        if let Some(status) = status.as_server_error()
            && replica.door.is_failure(status)
        {
            replica.observed.refused(status, pool.now());
            pool.failed(replica);
            self.pass.end(Verdict::Failure);
        }
    }
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            this.since.get_or_insert_with(|| this.pass.pool.now());
            return Poll::Pending;
        };
        if let Some(since) = this.since.take() {
            this.waited += this.pass.pool.now().saturating_duration_since(since);
        }
        if let Some(trailers) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.trailers_ref())
        {
            this.told(trailers);
        }
        let frame = match frame {
            // Not an end that means anything.
            None if this.untold => {
                this.untold = false;
                let failure = Failure::new(
                    FailureKind::UpstreamReset,
                    "the answer ended without a grpc-status",
                );
                Some(Err(failure.sent()))
            }
            frame => frame,
        };
        match &frame {
            Some(Ok(_)) if !this.is_end_stream() => {}
            Some(Ok(_)) | None => this.pass.end(Verdict::Success),
            Some(Err(failure)) => {
                let verdict = verdict(failure, this.waited);
                if verdict == Verdict::Failure {
                    let now = this.pass.pool.now();
                    this.pass.replica.observed.failed(failure, now);
                    // Its head counted as an answer.
                    this.pass.pool.failed(&this.pass.replica);
                }
                this.pass.end(verdict);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        !self.untold && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

//! The answer's body on its way down. It owns what the exchange holds: connection, lease and slot.
//!
//! At its clean end the connection goes back to the pool. When it is dropped before, or breaks, the
//! connection is closed at once; with HTTP/2 its stream is reset, and the connection goes on. An end that the upstream
//! did not announce is an error, never an end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::connection::Connection;
use super::multiplex::Stream;
use super::pool::Lease;
use super::request_body::Progress;
use crate::types::endpoint::Slot;
use crate::types::request::Timeouts;
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};

/// What an exchange holds until its end.
pub(super) struct Held {
    pub(super) carrier: Carrier,
    pub(super) slot: Option<Slot>,
    pub(super) progress: Progress,
}

/// What carries an exchange.
pub(super) enum Carrier {
    /// A connection that is its own.
    Exclusive {
        connection: Connection,
        lease: Lease,
        /// Whether the connection may serve again once this exchange has ended well.
        reusable: bool,
    },
    /// A stream of a shared one. The request's body goes first.
    Shared {
        #[expect(dead_code, reason = "held")]
        cutting: Cutting,
        #[expect(dead_code, reason = "held")]
        stream: Stream,
    },
}

/// Cuts a request's body off that is still on its way when its exchange is over.
pub(super) struct Cutting(pub(super) Progress);

impl Drop for Cutting {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl Held {
    /// Ends the exchange well. The connection is kept when nothing is left to come on it in either
    /// direction; an answer that came before the whole request was sent ends it.
    pub(super) fn finish(self, clock: &Clock) {
        let Self {
            carrier,
            slot,
            progress,
        } = self;
        match carrier {
            Carrier::Exclusive {
                connection,
                lease,
                reusable,
            } => {
                if reusable && slot.is_some() && progress.is_complete() {
                    lease.keep(connection, clock.now().monotonic);
                }
            }
            shared @ Carrier::Shared { .. } => drop(shared),
        }
        // The slot goes last, so that the next in line finds the connection.
        drop(slot);
    }
}

/// An answer's body.
pub(super) struct ResponseBody {
    incoming: Incoming,
    /// Gone once the body has ended.
    held: Option<Held>,
    clock: Clock,
    timeouts: Timeouts,
    deadline: Option<Instant>,
    /// Since when the consumer has been waiting for bytes.
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        held: Held,
        clock: Clock,
        timeouts: Timeouts,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            incoming,
            held: Some(held),
            clock,
            timeouts,
            deadline,
            waiting: None,
            timer: None,
        }
    }

    fn end(&mut self) {
        if let Some(held) = self.held.take() {
            held.finish(&self.clock);
        }
    }

    /// Whether the upstream has announced the end, now that nothing more comes.
    fn is_announced(&self) -> bool {
        // A stream can be reset with `NO_ERROR`, which hyper takes for an end.
        let shared = |held: &Held| matches!(held.carrier, Carrier::Shared { .. });
        self.incoming.is_end_stream() || !self.held.as_ref().is_some_and(shared)
    }

    fn broken(&mut self, error: &dyn std::fmt::Display) -> Failure {
        let failure = self.held.take().and_then(|held| held.progress.failure());
        tracing::debug!(%error, "an answer broke off");
        failure
            .unwrap_or_else(|| Failure::new(FailureKind::UpstreamReset, "the upstream's answer broke off"))
            .sent()
    }

    /// Whether the wait for the next bytes has been too long. Only time spent waiting counts: a client that
    /// reads slowly is no fault of the upstream.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let now = self.clock.now().monotonic;
        let since = *self.waiting.get_or_insert(now);
        loop {
            // Nor does it stand still while the client goes on sending.
            let moved = self.held.as_ref().map_or(since, |held| held.progress.moved());
            let idle = self.timeouts.idle.map(|idle| since.max(moved) + idle);
            let Some(limit) = idle.into_iter().chain(self.deadline).min() else {
                return Poll::Pending;
            };
            if limit <= self.clock.now().monotonic {
                self.held = None;
                let detail = if self.deadline == Some(limit) {
                    "the upstream's answer took too long"
                } else {
                    "the upstream's answer stood still for too long"
                };
                return Poll::Ready(Failure::new(FailureKind::UpstreamTimeout, detail).sent());
            }
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(limit)));
            if timer.deadline() != limit {
                timer.as_mut().reset(limit);
            }
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        if this.held.is_none() {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = None;
                if frame.is_trailers() || this.incoming.is_end_stream() {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(this.broken(&error)))),
            Poll::Ready(None) if !this.is_announced() => {
                Poll::Ready(Some(Err(this.broken(&"its stream was reset"))))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => this.poll_overdue(cx).map(|failure| Some(Err(failure))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

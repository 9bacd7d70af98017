//! The request's body on its way up, with a record of how far it came.
//!
//! hyper pulls it as fast as the socket takes it, so the client is slowed to the upstream's pace. The record
//! outlives the body: it keeps the failure that ended it (a client that left is not the upstream's fault) and
//! tells when it last moved.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::request::BodySlot;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// How far a request's body came.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Record>>);

#[derive(Debug)]
struct Record {
    moved: Instant,
    complete: bool,
    /// Whether the upstream would take more than the client has sent.
    starved: bool,
    failure: Option<Failure>,
}

impl Progress {
    /// When the body last moved; the start of the exchange before that.
    pub(super) fn moved(&self) -> Instant {
        self.0.lock().moved
    }

    /// Whether all of it was taken.
    pub(super) fn is_complete(&self) -> bool {
        self.0.lock().complete
    }

    /// Whether it is the client that keeps everybody waiting.
    pub(super) fn is_starved(&self) -> bool {
        let record = self.0.lock();
        record.starved && !record.complete
    }

    /// What ended it early.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.0.lock().failure.clone()
    }
}

/// A request's body that keeps [`Progress`]. Dropped before hyper asked it for anything, it goes back to where
/// it was taken from, for the next attempt.
pub(super) struct RequestBody {
    inner: Body,
    slot: Option<BodySlot>,
    progress: Progress,
    clock: Clock,
}

impl RequestBody {
    /// Takes the body out of `slot`; `None` when it is gone.
    pub(super) fn take(slot: &BodySlot, clock: Clock) -> Option<(Self, Progress)> {
        let inner = slot.take()?;
        let progress = Progress(Arc::new(Mutex::new(Record {
            moved: clock.now().monotonic,
            complete: inner.is_empty(),
            starved: false,
            failure: None,
        })));
        let body = Self {
            inner,
            slot: Some(slot.clone()),
            progress: progress.clone(),
            clock,
        };
        Some((body, progress))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.restore(std::mem::take(&mut self.inner));
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        // A client that waits for `100 Continue` has been told to go on: there is no way back.
        self.slot = None;
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let mut record = self.progress.0.lock();
        record.starved = polled.is_pending();
        let frame = std::task::ready!(polled);
        record.moved = self.clock.now().monotonic;
        match &frame {
            None => record.complete = true,
            Some(Ok(frame)) => record.complete = frame.is_trailers() || self.inner.is_empty(),
            Some(Err(failure)) => record.failure = Some(failure.clone()),
        }
        drop(record);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

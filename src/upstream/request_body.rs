//! The request's body on its way up, with a record of how far it came.
//!
//! hyper pulls it as fast as the socket takes it, so the client is slowed to the upstream's pace. The record
//! outlives the body: it keeps the failure that ended it (a client that left is not the upstream's fault) and
//! tells when it last moved. With HTTP/2 it can also cut the body off, which resets its stream and no other, and take
//! back what was given, for a request that the upstream has refused before it did anything.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::body::longer;
use crate::types::request::BodySlot;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// As much of a body is kept until the head of its answer comes, in case the request is refused.
const KEPT: usize = 16 << 10;

/// How far a request's body came.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Record>>);

struct Record {
    moved: Instant,
    complete: bool,
    /// Whether the upstream would take more than the client has sent.
    starved: bool,
    failure: Option<Failure>,
    /// The body, as long as anybody may ask for it.
    inner: Body,
    /// Whether hyper has let it go.
    released: bool,
    /// What it gave, while that may be wanted again.
    given: Option<Given>,
    cut: bool,
    waker: Option<Waker>,
}

/// What a body gave.
#[derive(Default)]
struct Given {
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
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

    /// The answer has begun: what was given is not wanted again.
    pub(super) fn answered(&self) {
        let mut record = self.0.lock();
        record.given = None;
        if record.released {
            record.inner = Body::Empty;
        }
    }

    /// Ends a body that is not complete: nobody wants the rest.
    pub(super) fn cut(&self) {
        let waker = {
            let mut record = self.0.lock();
            if record.complete || record.cut {
                return;
            }
            record.cut = true;
            record.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Puts the body back to where it was taken from, whole, unless too much of it is gone.
    pub(super) fn take_back(&self, slot: &BodySlot) {
        let body = {
            let mut record = self.0.lock();
            let Some(given) = record.given.take().filter(|_| record.failure.is_none()) else {
                return;
            };
            record.cut = true;
            let rest = std::mem::take(&mut record.inner);
            if given.data.is_empty() && given.trailers.is_none() {
                rest
            } else {
                Body::stream(Again {
                    data: given.data.into_iter(),
                    trailers: given.trailers,
                    left: given.bytes as u64,
                    rest,
                })
            }
        };
        slot.restore(body);
    }
}

/// A request's body that keeps [`Progress`]. Dropped before hyper asked it for anything, it goes back to where
/// it was taken from, for the next attempt.
pub(super) struct RequestBody {
    slot: Option<BodySlot>,
    progress: Progress,
    clock: Clock,
}

impl RequestBody {
    /// Takes the body out of `slot`; `None` when it is gone. `keep`: what it gives may be taken back.
    pub(super) fn take(slot: &BodySlot, clock: Clock, keep: bool) -> Option<(Self, Progress)> {
        let inner = slot.take()?;
        let progress = Progress(Arc::new(Mutex::new(Record {
            moved: clock.now().monotonic,
            complete: inner.is_empty(),
            starved: false,
            failure: None,
            inner,
            released: false,
            given: keep.then(Given::default),
            cut: false,
            waker: None,
        })));
        let body = Self {
            slot: Some(slot.clone()),
            progress: progress.clone(),
            clock,
        };
        Some((body, progress))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut record = self.progress.0.lock();
        record.released = true;
        if record.given.is_some() && self.slot.is_none() {
            // It may be taken back.
            return;
        }
        let inner = std::mem::take(&mut record.inner);
        record.given = None;
        let untouched = self.slot.take().filter(|_| !record.cut);
        drop(record);
        if let Some(slot) = untouched {
            slot.restore(inner);
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        // A client that waits for `100 Continue` has been told to go on: there is no way back.
        self.slot = None;
        let mut record = self.progress.0.lock();
        if record.cut {
            return Poll::Ready(Some(Err(CutOff::new("nobody wants the rest"))));
        }
        let polled = Pin::new(&mut record.inner).poll_frame(cx);
        record.starved = polled.is_pending();
        let Poll::Ready(frame) = polled else {
            if !record
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                record.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        record.moved = self.clock.now().monotonic;
        match &frame {
            None => record.complete = true,
            Some(Ok(frame)) => {
                record.complete = frame.is_trailers() || record.inner.is_empty();
                record.note(frame);
            }
            Some(Err(failure)) => record.failure = Some(failure.clone()),
        }
        drop(record);
        Poll::Ready(frame.map(|frame| frame.map_err(|failure| CutOff::new(failure.detail))))
    }

    fn is_end_stream(&self) -> bool {
        let record = self.progress.0.lock();
        !record.cut && record.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.progress.0.lock().inner.size_hint()
    }
}

impl Record {
    /// Keeps a copy of what is given, if that may be wanted again.
    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(given) = &mut self.given else { return };
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if given.bytes + data.len() <= KEPT => {
                given.bytes += data.len();
                given.data.push(data.clone());
            }
            (_, Some(trailers)) => given.trailers = Some(trailers.clone()),
            _ => self.given = None,
        }
    }
}

/// Why a body gives no more. In HTTP/2 the stream is then reset with `CANCEL`.
#[derive(Debug)]
pub(super) struct CutOff {
    why: std::borrow::Cow<'static, str>,
    reset: h2::Error,
}

impl CutOff {
    fn new(why: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self {
            why: why.into(),
            reset: h2::Reason::CANCEL.into(),
        }
    }
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for CutOff {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.reset)
    }
}

/// What a body gave, and then the rest of it.
struct Again {
    data: std::vec::IntoIter<Bytes>,
    trailers: Option<HeaderMap>,
    /// Bytes that were given before.
    left: u64,
    rest: Body,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(data) = self.data.next() {
            self.left -= data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.data.as_slice().is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        longer(&self.rest.size_hint(), self.left)
    }
}

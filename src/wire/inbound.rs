//! The request's body on its way in: names why it broke off, and gives up on a client that is too slow.
//!
//! A gRPC client may be silent for as long as it likes: what it has to say next can depend on what it is waiting for.
//! Then only the time limits of the exchange count.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits;
use super::link::Link;
use crate::config::LimitsConfig;
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

/// What became of a request body.
#[derive(Debug, Clone, Default)]
enum Progress {
    #[default]
    Open,
    /// All of it was taken.
    Complete,
    /// It broke off.
    Failed(Failure),
}

/// Tells the service what became of the body that it gave away.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(Option<Arc<Mutex<Progress>>>);

impl Watch {
    /// Whether every byte was taken, so that nothing of it can be left on the connection.
    pub(super) fn is_complete(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|progress| matches!(*progress.lock(), Progress::Complete))
    }

    /// Why it broke off.
    pub(super) fn failure(&self) -> Option<Failure> {
        match &*self.0.as_ref()?.lock() {
            Progress::Failed(failure) => Some(failure.clone()),
            _ => None,
        }
    }
}

/// Measures a client that has to send at least `rate` bytes a second, with `grace` in hand. Only time
/// spent waiting for the client counts, so a slow upstream is not held against it.
#[derive(Debug)]
struct Pace {
    rate: f64,
    grace: Duration,
    allowance: Duration,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: &LimitsConfig) -> Self {
        Self {
            rate: limits.body_rate.0 as f64,
            grace: limits.body_grace.0,
            allowance: limits.body_grace.0,
            waiting_since: None,
            timer: None,
        }
    }

    fn received(&mut self, now: Instant, bytes: usize) {
        if let Some(since) = self.waiting_since.take() {
            let earned = Duration::try_from_secs_f64(bytes as f64 / self.rate).unwrap_or(self.grace);
            let waited = now.saturating_duration_since(since);
            self.allowance = self
                .allowance
                .saturating_sub(waited)
                .saturating_add(earned)
                .min(self.grace);
        }
    }

    fn poll_exhausted(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.rate <= 0.0 {
            return Poll::Pending;
        }
        let deadline = *self.waiting_since.get_or_insert(now) + self.allowance;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

struct Inbound {
    inner: Incoming,
    progress: Arc<Mutex<Progress>>,
    link: Arc<Link>,
    clock: Clock,
    /// `None` for a client that may take its time.
    pace: Option<Pace>,
    is_h2: bool,
    over: bool,
}

/// How a client may send a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Over HTTP/2.
    pub(super) is_h2: bool,
    /// As slowly as it likes.
    pub(super) is_patient: bool,
}

/// The body for the stages, and what tells of its fate.
pub(super) fn body(
    incoming: Incoming,
    link: &Arc<Link>,
    clock: &Clock,
    limits: &LimitsConfig,
    manner: Manner,
) -> (Body, Watch) {
    if incoming.is_end_stream() {
        return (Body::Empty, Watch::default());
    }
    let progress = Arc::new(Mutex::new(Progress::Open));
    let body = Inbound {
        inner: incoming,
        progress: progress.clone(),
        link: link.clone(),
        clock: clock.clone(),
        pace: (!manner.is_patient).then(|| Pace::new(limits)),
        is_h2: manner.is_h2,
        over: false,
    };
    (Body::stream(body), Watch(Some(progress)))
}

impl Inbound {
    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.over = true;
        *self.progress.lock() = Progress::Failed(failure.clone());
        Poll::Ready(Some(Err(failure)))
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref()
                    && let Err(failure) = limits::check_trailers(trailers)
                {
                    return self.fail(failure);
                }
                if frame.is_trailers() || self.inner.is_end_stream() {
                    // It may not be asked again.
                    *self.progress.lock() = Progress::Complete;
                }
                let now = self.clock.now().monotonic;
                if let Some(pace) = &mut self.pace {
                    pace.received(now, frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                let gone = || Failure::new(FailureKind::ClientGone, "the request body ended too early");
                let failure = self.link.body_fault().unwrap_or_else(gone);
                self.fail(failure)
            }
            // A stream can be reset with `NO_ERROR`, which hyper takes for an end.
            Poll::Ready(None) if self.is_h2 && !self.inner.is_end_stream() => self.fail(Failure::new(
                FailureKind::ClientGone,
                "the request body ended too early",
            )),
            Poll::Ready(None) => {
                self.over = true;
                *self.progress.lock() = Progress::Complete;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let now = self.clock.now().monotonic;
                let Some(pace) = &mut self.pace else {
                    return Poll::Pending;
                };
                ready!(pace.poll_exhausted(now, cx));
                let failure = Failure::new(
                    FailureKind::RequestTimeout,
                    format!(
                        "the request body came slower than {} bytes a second for {} ms",
                        pace.rate,
                        pace.grace.as_millis()
                    ),
                );
                self.fail(failure)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

//! The origin of the model: every call waits at its head and at each frame until the history lets it go on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Method, Response};
use http_body::Frame;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::Service;

use super::steps::Answer;
use crate::types::request::FetchRequest;
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

pub(super) const RESOURCES: usize = 3;
/// Frames of a body.
const FRAMES: usize = 3;

/// What the origin saw of one request, and how far its answer is.
pub(super) struct Call {
    /// Number of the client whose request this is, or began this.
    pub client: usize,
    /// `None`: a write.
    pub read: Option<(usize, usize)>,
    pub head_only: bool,
    /// Step at which it came.
    pub entered: u64,
    pub entered_at: Instant,
    /// Step at which the answer was read, and the version that it then had.
    pub snapshot: Option<(u64, u64)>,
    pub answer: Option<Answer>,
    /// Whether the cache has seen the head.
    pub taken: bool,
    /// Frames that the origin has sent and nobody has read.
    sent: VecDeque<Option<Result<Bytes, Failure>>>,
    /// Frames that were sent in all.
    pub frames: usize,
    /// Whether the origin is through with it.
    pub through: bool,
    /// Whether it broke off.
    pub broken: bool,
    /// Whether the end, or a break, was seen.
    pub ended: bool,
    /// Whether it was let go before its end.
    pub dropped: bool,
    waker: Option<Waker>,
}

impl Call {
    /// The body that belongs to it.
    pub(super) fn text(&self, number: usize) -> String {
        let (_, version) = self.snapshot.unwrap_or_default();
        match self.read {
            Some((resource, who)) => {
                format!("{{\"fetch\":{number},\"resource\":{resource},\"who\":{who},\"version\":{version}}}")
            }
            None => "data: a part of a stream that has several parts\n\n".to_owned(),
        }
    }

    pub(super) fn is_in_flight(&self) -> bool {
        !self.ended && !self.dropped
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Everything that the origin knows.
pub(super) struct State {
    pub calls: Vec<Call>,
    pub versions: [u64; RESOURCES],
    /// The number of the step.
    pub seq: u64,
}

/// A service that fetches from the model's origin.
#[derive(Clone)]
pub(super) struct Origin {
    pub state: Arc<Mutex<State>>,
    pub clock: Clock,
}

impl Origin {
    pub(super) fn new(clock: Clock) -> Self {
        let state = State {
            calls: Vec::new(),
            versions: [1; RESOURCES],
            seq: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            clock,
        }
    }
}

impl State {
    pub(super) fn snapshot(&mut self, number: usize) {
        let (seq, versions) = (self.seq, self.versions);
        let call = &mut self.calls[number];
        if let (Some((resource, _)), None, None) = (call.read, call.snapshot, call.answer) {
            call.snapshot = Some((seq, versions[resource]));
        }
    }

    pub(super) fn answer(&mut self, number: usize, answer: Answer) {
        self.snapshot(number);
        let call = &mut self.calls[number];
        if call.answer.is_none() {
            call.answer = Some(answer);
            call.through = call.head_only || answer.is_failure();
            call.wake();
        }
    }

    /// Sends the next frame; the last one is followed by the end.
    pub(super) fn frame(&mut self, number: usize) {
        let call = &mut self.calls[number];
        if call.answer.is_none() || call.through {
            return;
        }
        if call.frames == FRAMES {
            call.sent.push_back(None);
            call.through = true;
        } else {
            let text = call.text(number);
            let part = text.len() / FRAMES;
            let from = call.frames * part;
            let to = if call.frames + 1 == FRAMES {
                text.len()
            } else {
                from + part
            };
            call.sent
                .push_back(Some(Ok(Bytes::copy_from_slice(&text.as_bytes()[from..to]))));
            call.frames += 1;
        }
        call.wake();
    }

    pub(super) fn break_off(&mut self, number: usize) {
        let call = &mut self.calls[number];
        if call.answer.is_some() && !call.through {
            let cut = Failure::new(FailureKind::UpstreamReset, "injected").sent();
            call.sent.push_back(Some(Err(cut)));
            call.through = true;
            call.broken = true;
            call.wake();
        }
    }
}

impl Service<FetchRequest> for Origin {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Head;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: FetchRequest) -> Head {
        let field = |name: &str| -> Option<usize> {
            request.head.parts.headers.get(name)?.to_str().ok()?.parse().ok()
        };
        let mut state = self.state.lock();
        let entered = state.seq;
        state.calls.push(Call {
            client: field("x-client").expect("a number"),
            read: field("x-resource").zip(field("x-who")),
            head_only: request.head.parts.method == Method::HEAD,
            entered,
            entered_at: self.clock.now().monotonic,
            snapshot: None,
            answer: None,
            taken: false,
            sent: VecDeque::new(),
            frames: 0,
            through: false,
            broken: false,
            ended: false,
            dropped: false,
            waker: None,
        });
        let number = state.calls.len() - 1;
        if field("x-early").is_some() {
            state.snapshot(number);
        }
        drop(state);
        Head {
            origin: self.clone(),
            number,
        }
    }
}

/// Waits for the head of an answer.
pub(super) struct Head {
    origin: Origin,
    number: usize,
}

impl Future for Head {
    type Output = Result<Response<Body>, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let number = self.number;
        let mut state = self.origin.state.lock();
        let call = &mut state.calls[number];
        let Some(answer) = call.answer else {
            call.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        call.taken = true;
        let status = match answer {
            Answer::Ok | Answer::NoStore => 200,
            Answer::NotFound => 404,
            Answer::Unauthorized => 401,
            Answer::Broken500 => 500,
            Answer::TimedOut | Answer::Refused => {
                call.ended = true;
                let failure = match answer {
                    Answer::Refused => Failure::new(FailureKind::ConnectFailed, "injected"),
                    _ => Failure::new(FailureKind::UpstreamTimeout, "injected").sent(),
                };
                return Poll::Ready(Err(failure));
            }
        };
        let mut response = Response::builder().status(status).header("x-fetch", number);
        if call.read.is_some() {
            response = response.header("content-type", "application/json");
        }
        if answer == Answer::NoStore {
            response = response.header("cache-control", "no-store");
        }
        let body = if call.head_only {
            call.ended = true;
            Body::Empty
        } else {
            Body::stream(Frames {
                origin: self.origin.clone(),
                number,
            })
        };
        Poll::Ready(Ok(response.body(body).expect("a response")))
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let call = &mut self.origin.state.lock().calls[self.number];
        call.dropped |= !call.taken;
    }
}

struct Frames {
    origin: Origin,
    number: usize,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let call = &mut self.origin.state.lock().calls[self.number];
        let Some(next) = call.sent.pop_front() else {
            call.waker = Some(cx.waker().clone());
            return if call.ended {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        call.ended = !matches!(next, Some(Ok(_)));
        Poll::Ready(next.map(|frame| frame.map(Frame::data)))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let call = &mut self.origin.state.lock().calls[self.number];
        call.dropped |= !call.ended;
    }
}

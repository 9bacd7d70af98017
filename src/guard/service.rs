//! The guard as a tower service.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::{Layer, Service, ServiceExt as _};

use super::control::GuardControl;
use super::known_ids::peers::Peers;
use super::scan::scan;
use super::verdict::{Sent, Shared, Verdict, is_fresh};
use crate::config::GuardMode;
use crate::types::request::{ClassifiedRequest, Learn};
use crate::types::scan::Scanner;
use crate::types::{Body, Failure, FailureKind};

/// Puts a [`Guard`] before a service that knows answers.
#[derive(Debug, Clone)]
pub struct GuardLayer {
    shared: Option<Arc<Shared>>,
    peers: Option<Arc<Peers>>,
}

impl GuardLayer {
    pub(super) fn over(shared: Shared) -> Self {
        Self {
            shared: Some(Arc::new(shared)),
            peers: None,
        }
    }

    /// One of several instances.
    pub(super) fn with(mut self, peers: Arc<Peers>) -> Self {
        self.peers = Some(peers);
        self
    }

    /// Lets everything through.
    pub fn off() -> Self {
        Self {
            shared: None,
            peers: None,
        }
    }

    /// The handle, when there is anything to see.
    pub fn control(&self) -> Option<GuardControl> {
        let shared = self.shared.clone()?;
        let peers = self.peers.clone();
        Some(GuardControl { shared, peers })
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// Answers requests for what does not exist.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
    shared: Option<Arc<Shared>>,
}

pin_project! {
    /// The answer, or what leads to it.
    #[project = GuardFutureProj]
    pub enum GuardFuture<F> {
        Through { #[pin] inner: F },
        Judged { inner: Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>> },
    }
}

impl<F: Future<Output = Result<Response<Body>, Failure>>> Future for GuardFuture<F> {
    type Output = Result<Response<Body>, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            GuardFutureProj::Through { inner } => inner.poll(context),
            GuardFutureProj::Judged { inner } => inner.as_mut().poll(context),
        }
    }
}

impl<S> Service<ClassifiedRequest> for Guard<S>
where
    S: Service<ClassifiedRequest, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: ClassifiedRequest) -> Self::Future {
        let Some(shared) = &self.shared else {
            return GuardFuture::Through {
                inner: self.inner.call(request),
            };
        };
        let decision = &request.decision;
        let learns = if shared.learns { decision.learns } else { &[] };
        let knows = shared.knows(decision);
        let sent = if knows {
            shared.metrics.known.inc();
            Sent::of(shared, &request, Verdict::none())
        } else {
            None
        };
        if knows && sent.is_none() && learns.is_empty() {
            return GuardFuture::Through {
                inner: self.inner.call(request),
            };
        }
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let shared = shared.clone();
        GuardFuture::Judged {
            inner: Box::pin(async move { go(inner, shared, request, sent, learns).await }),
        }
    }
}

/// `sent`: when everything is known that the request asks for, and its answer may tell something.
async fn go<S>(
    inner: S,
    shared: Arc<Shared>,
    request: ClassifiedRequest,
    sent: Option<Sent>,
    learns: &'static [Learn],
) -> Result<Response<Body>, Failure>
where
    S: Service<ClassifiedRequest, Response = Response<Body>, Error = Failure>,
{
    let sent = if shared.knows(&request.decision) {
        sent
    } else {
        let mut verdict = shared
            .judge(&request.parts, &request.decision, request.client)
            .await;
        let enforces = shared.mode == GuardMode::Enforce;
        match verdict.refused.take() {
            Some(refused) if enforces => {
                shared.metrics.refused(refused.kind);
                return Ok(refused.answered(&request.decision));
            }
            refused => {
                if let Some(refused) = &refused {
                    shared.metrics.would_refuse(refused.kind);
                }
                verdict.refused = refused;
            }
        }
        if enforces
            && !verdict.unsure.is_empty()
            && let Err(later) = shared.may_ask(&request.decision, request.client)
        {
            shared.metrics.throttled.inc();
            let mut failure = Failure::new(
                FailureKind::TooManyUnknown,
                "too many requests for things that nobody knows (guard.unknown_per_minute)",
            );
            failure.retry_after = Some(later.seconds());
            failure.outcome = Some(request.decision.outcome());
            return Err(failure);
        }
        Sent::of(&shared, &request, verdict)
    };
    let creates = !request.parts.method.is_safe();
    let answer = inner.oneshot(request).await?;
    if let Some(sent) = sent {
        shared.hear(&sent, &answer);
    }
    Ok(if learns.is_empty() || !can_be_read(&answer) {
        answer
    } else {
        let learning = Learning {
            inner: Body::Empty,
            scanner: Scanner::default(),
            learns,
            creates,
            shared,
        };
        answer.map(|body| learning.over(body))
    })
}

/// Whether an answer can tell of ids. One that was stored was read when it came.
fn can_be_read(answer: &Response<Body>) -> bool {
    let fields = answer.headers();
    let plain = !fields.contains_key(CONTENT_ENCODING);
    let kind = fields.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    answer.status().is_success()
        && is_fresh(answer)
        && plain
        && (kind.starts_with(b"application/json") || kind.starts_with(b"text/event-stream"))
}

/// A body that is read while it passes.
struct Learning {
    inner: Body,
    scanner: Scanner,
    learns: &'static [Learn],
    /// Whether what it tells of may be new.
    creates: bool,
    shared: Arc<Shared>,
}

impl Learning {
    /// The same body, of which is learnt before it is given on.
    fn over(mut self, body: Body) -> Body {
        match body {
            Body::Empty => Body::Empty,
            Body::Full(bytes) => {
                self.read(&bytes);
                Body::Full(bytes)
            }
            Body::Stream(inner) => {
                self.inner = Body::Stream(inner);
                Body::stream(self)
            }
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let (shared, creates) = (&self.shared, self.creates);
        scan(&mut self.scanner, bytes, self.learns, |kind, id| {
            shared.learn(kind, id, creates);
        });
    }
}

impl http_body::Body for Learning {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            self.read(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

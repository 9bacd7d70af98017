//! A write on its way: whatever becomes of it, the answers that it may change end.
//!
//! They end when it goes out, for it may take effect long before it is answered, and again when it is answered.
//! Dify answers 400 and commits, so the status does not matter; a write that is cut off may still take effect,
//! so its tags stay unsettled for a while, as those do that Dify goes on to change in the background. A
//! generation changes its conversation once at its beginning and once at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};

use super::coherence::Told;
use super::fetching::Shared;
use super::settle;
use crate::types::ids::{Batch, Tag, Tags};
use crate::types::request::{Background, Decision};
use crate::types::{Body, Failure};

/// Held while a write is under way. Dropped without an outcome, the write counts as cut off.
pub(super) struct WriteGuard {
    shared: Arc<Shared>,
    tags: Tags,
    /// What Dify goes on to change after its answer.
    background: Tags,
    open: bool,
}

impl WriteGuard {
    /// Takes over what the request changes.
    pub(super) fn new(shared: &Arc<Shared>, decision: &mut Decision) -> Self {
        Self {
            shared: shared.clone(),
            tags: std::mem::take(&mut decision.invalidates),
            background: match std::mem::replace(&mut decision.background, Background::None) {
                Background::Begins(tags) => tags,
                Background::None | Background::Tells(..) => Tags::new(),
            },
            open: true,
        }
    }

    /// The write goes out. The others need not know before it is answered.
    pub(super) fn sent(&self) {
        self.shared.coherence.bump_here(&self.tags);
    }

    /// The upstream has answered.
    pub(super) fn answered(&self) -> Told {
        self.shared.metrics.invalidations.inc();
        self.shared.coherence.bump(&self.tags)
    }

    /// Nothing more can come of it.
    pub(super) fn settle(mut self) {
        self.open = false;
    }

    /// Nothing more can come of it than what Dify does in the background.
    pub(super) async fn settle_after(mut self, response: Response<Body>) -> Response<Body> {
        self.refused_by(&response);
        if self.background.is_empty() {
            self.settle();
            return response;
        }
        let (batch, response) = settle::batch_begun_by(response).await;
        let told = self.go_on(batch);
        let patience = self.shared.patience();
        self.settle();
        told.within(patience).await;
        response
    }

    /// Watches the answer's body to its end.
    pub(super) fn until_end_of(mut self, response: Response<Body>) -> Response<Body> {
        self.refused_by(&response);
        response.map(|body| {
            if body.is_empty() {
                self.end();
                return body;
            }
            Body::stream(Guarded {
                body,
                guard: Some(self),
            })
        })
    }

    /// A write that is answered with an error began nothing.
    fn refused_by(&mut self, response: &Response<Body>) {
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            self.background.clear();
        }
    }

    /// The end of an answer, which does not wait until the other instances know.
    fn end(self) {
        if !self.background.is_empty() {
            drop(self.go_on(None));
        }
        self.settle();
    }

    /// Dify works on.
    fn go_on(&self, batch: Option<Batch>) -> Told {
        self.shared.metrics.background.inc();
        self.unsettle(&self.background, batch)
    }

    fn unsettle(&self, tags: &[Tag], batch: Option<Batch>) -> Told {
        let wait = self.shared.config.unsettled_window.0;
        self.shared.coherence.bump_unsettled(tags, wait, batch)
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        if self.open {
            self.shared.metrics.unsettled.inc();
            // The client has gone, or waits for nothing any more.
            drop(self.unsettle(&self.tags, None));
        }
    }
}

struct Guarded {
    body: Body,
    guard: Option<WriteGuard>,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        // Bumped before the client can see the end, or the break.
        if matches!(frame, Some(Err(_))) {
            self.guard = None;
        }
        let ended = frame.is_none() || (matches!(frame, Some(Ok(_))) && self.body.is_end_stream());
        if ended && let Some(guard) = self.guard.take() {
            // The last frame does not wait until the others know.
            drop(guard.answered());
            guard.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

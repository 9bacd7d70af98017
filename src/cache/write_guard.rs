//! A write on its way: whatever becomes of it, the answers that it may change end.
//!
//! They end when it goes out, for it may take effect long before it is answered, and again when it is answered.
//! Dify answers 400 and commits, so the status does not matter; a write that is cut off may still take effect,
//! so its tags stay unsettled for a while. A generation changes its conversation once at its beginning and once
//! at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::coherence::{Coherence, Told};
use super::metrics::CacheMetrics;
use crate::types::ids::Tags;
use crate::types::{Body, Failure};

/// Held while a write is under way. Dropped without an outcome, the write counts as cut off.
pub(super) struct WriteGuard {
    coherence: Arc<Coherence>,
    tags: Tags,
    metrics: CacheMetrics,
    /// How long it may still take effect without an answer.
    window: Duration,
    open: bool,
}

impl WriteGuard {
    pub(super) fn new(
        coherence: Arc<Coherence>,
        tags: Tags,
        metrics: CacheMetrics,
        window: Duration,
    ) -> Self {
        Self {
            coherence,
            tags,
            metrics,
            window,
            open: true,
        }
    }

    /// The write goes out. The others need not know before it is answered.
    pub(super) fn sent(&self) {
        self.coherence.bump_here(&self.tags);
    }

    /// The upstream has answered.
    pub(super) fn answered(&self) -> Told {
        self.metrics.invalidations.inc();
        self.coherence.bump(&self.tags)
    }

    /// Nothing more can come of it.
    pub(super) fn settle(mut self) {
        self.open = false;
    }

    /// Watches the answer's body to its end.
    pub(super) fn until_end_of(self, body: Body) -> Body {
        if body.is_empty() {
            self.settle();
            return body;
        }
        Body::stream(Guarded {
            body,
            guard: Some(self),
        })
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        if self.open {
            self.metrics.unsettled.inc();
            // The client has gone, or waits for nothing any more.
            drop(self.coherence.bump_unsettled(&self.tags, self.window));
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
            guard.settle();
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

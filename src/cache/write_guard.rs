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

use super::invalidation::TagTable;
use super::metrics::CacheMetrics;
use crate::types::ids::Tags;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// How long a write without an answer may still take effect.
const UNSETTLED: Duration = Duration::from_secs(30);

/// Held while a write is under way. Dropped without an outcome, the write counts as cut off.
pub(super) struct WriteGuard {
    table: Arc<TagTable>,
    tags: Tags,
    clock: Clock,
    metrics: CacheMetrics,
    open: bool,
}

impl WriteGuard {
    pub(super) fn new(table: Arc<TagTable>, tags: Tags, clock: Clock, metrics: CacheMetrics) -> Self {
        Self {
            table,
            tags,
            clock,
            metrics,
            open: true,
        }
    }

    /// The write goes out.
    pub(super) fn sent(&self) {
        self.table.bump(&self.tags);
    }

    /// The upstream has answered.
    pub(super) fn answered(&self) {
        self.metrics.invalidations.inc();
        self.table.bump(&self.tags);
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
            self.table
                .bump_unsettled(&self.tags, self.clock.now().monotonic, UNSETTLED);
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
            guard.answered();
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

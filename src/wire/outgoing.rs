//! The response's body on its way out: keeps the record of a streaming answer open until its end is known.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::access_log::{End, Record};
use super::link::Link;
use crate::types::{Body, Failure};

/// What hyper sends.
pub(super) struct Outgoing {
    body: Body,
    /// Open while a stream goes on; closed already for content that is at hand.
    record: Option<Box<Record>>,
    length: Option<u64>,
    /// Why the content broke off, until what came before has had a chance to be sent.
    failure: Option<Failure>,
    /// Set where the end of the connection would be taken for the end of the content.
    reset: Option<Arc<Link>>,
}

impl Outgoing {
    /// Closes the record at once, or with the end of a streaming body. `reset` is the connection to reset
    /// when the content breaks off and its length was not announced.
    pub(super) fn new(body: Body, mut record: Record, reset: Option<Arc<Link>>) -> Self {
        let length = body.size_hint().exact();
        let record = match body {
            Body::Stream(_) if !body.is_empty() => Some(Box::new(record)),
            _ => {
                record.bytes = length.unwrap_or_default();
                record.end = End::Completed;
                None
            }
        };
        Self {
            body,
            record,
            length,
            failure: None,
            reset,
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(failure))) = polled {
            if let Some(mut record) = self.record.take() {
                record.end = End::Failed;
            }
            if let Some(link) = self.reset.take() {
                link.reset();
            }
            // At an error hyper throws away what it holds. When the body has nothing, it sends that first.
            self.failure = Some(failure);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Poll::Ready(frame) = &polled
            && let Some(record) = &mut self.record
        {
            match frame {
                Some(Ok(frame)) => {
                    record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                _ => {
                    record.end = End::Completed;
                    self.record = None;
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // hyper does not ask again after the last announced byte.
        if let Some(record) = &mut self.record
            && (self.body.is_end_stream() || self.length == Some(record.bytes))
        {
            record.end = End::Completed;
        }
    }
}

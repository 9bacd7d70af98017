//! The response's body on its way out: keeps the record of an answer open until its end is known.
//!
//! An answer that fits into one piece is as good as sent. Of a longer one HTTP/2 gets a piece at a time, so that
//! `stall` sees whether the client takes any. Where the content breaks off, gRPC has a way to say why: in its trailers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::access_log::{End, Record};
use super::link::Link;
use super::respond::grpc_trailers;
use super::stall;
use crate::types::{Body, Failure};

/// What hyper sends.
pub(super) struct Outgoing {
    body: Body,
    /// What the body gave and was not handed out yet.
    rest: Bytes,
    /// Whether content is handed out in pieces.
    in_pieces: bool,
    /// Open while the answer goes on; closed already for a short one that is at hand.
    record: Option<Box<Record>>,
    length: Option<u64>,
    /// Why the content broke off, until what came before has had a chance to be sent.
    failure: Option<Failure>,
    broken: Broken,
}

/// What happens when the content breaks off.
pub(super) enum Broken {
    /// An error, of which hyper makes the end of the connection or the stream.
    Error,
    /// The connection is reset, too: its end would be taken for the end of the content.
    Reset(Arc<Link>),
    /// Trailers say what happened, as gRPC has it.
    Told,
}

impl Outgoing {
    /// Closes the record at once, or with the end of a body that is long or not here yet. `in_pieces` is for
    /// HTTP/2.
    pub(super) fn new(body: Body, mut record: Record, in_pieces: bool, broken: Broken) -> Self {
        let length = body.size_hint().exact();
        let at_hand = match &body {
            Body::Empty => true,
            Body::Full(bytes) => bytes.len() <= stall::PIECE,
            Body::Stream(_) => body.is_empty(),
        };
        let record = if at_hand {
            record.bytes = length.unwrap_or_default();
            record.end = End::Completed;
            None
        } else {
            Some(Box::new(record))
        };
        Self {
            body,
            rest: Bytes::new(),
            in_pieces,
            record,
            length,
            failure: None,
            broken,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if self.in_pieces => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                polled => return polled,
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(stall::PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
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
        let polled = self.poll_piece(cx);
        stall::note(matches!(polled, Poll::Ready(Some(Ok(_)))));
        if let Poll::Ready(Some(Err(failure))) = polled {
            if let Some(mut record) = self.record.take() {
                record.end = End::Failed;
            }
            match &self.broken {
                Broken::Error => {}
                Broken::Reset(link) => link.reset(),
                Broken::Told => {
                    self.body = Body::Empty;
                    return Poll::Ready(Some(Ok(Frame::trailers(grpc_trailers(&failure)))));
                }
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
        self.failure.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let ended = http_body::Body::is_end_stream(self);
        // hyper does not ask again after the last announced byte.
        if let Some(record) = &mut self.record
            && (ended || self.length == Some(record.bytes))
        {
            record.end = End::Completed;
        }
    }
}

//! Collecting a body that is to be stored, without losing it when it turns out not to be.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::types::{Body, Failure};

/// Why a body that broke off is not kept.
pub(super) const INCOMPLETE: &str = "incomplete";

/// What came of collecting.
pub(super) enum Collected {
    /// The whole body.
    Whole(Bytes),
    /// Too long, broken off, or with trailers: here it is again from its beginning, with whatever comes.
    Unfinished(Body, &'static str),
}

/// Reads `body` to its end, but not beyond `limit` bytes.
pub(super) async fn collect(mut body: Body, limit: u64) -> Collected {
    if body.size_hint().lower() > limit {
        return Collected::Unfinished(body, "too-large");
    }
    let mut parts: VecDeque<Bytes> = VecDeque::new();
    let mut length = 0_u64;
    loop {
        let (tail, reason) = match body.frame().await {
            None => return Collected::Whole(joined(&parts, length)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    length += data.len() as u64;
                    parts.push_back(data);
                    if length <= limit {
                        continue;
                    }
                    (None, "too-large")
                }
                Err(trailers) => (Some(Ok(trailers)), "trailers"),
            },
            Some(Err(failure)) => (Some(Err(failure)), INCOMPLETE),
        };
        let again = Again {
            parts,
            tail,
            rest: body,
        };
        return Collected::Unfinished(Body::stream(again), reason);
    }
}

/// May still be a slice of a larger buffer; `packed` copies what is kept.
fn joined(parts: &VecDeque<Bytes>, length: u64) -> Bytes {
    if let (1, Some(whole)) = (parts.len(), parts.front()) {
        return whole.clone();
    }
    let mut whole = BytesMut::with_capacity(length as usize);
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// What was read already, then the rest.
struct Again {
    parts: VecDeque<Bytes>,
    tail: Option<Result<Frame<Bytes>, Failure>>,
    rest: Body,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if let Some(tail) = self.tail.take() {
            return Poll::Ready(Some(tail));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.tail.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let buffered: u64 = self.parts.iter().map(|part| part.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(buffered + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(buffered + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FailureKind;

    struct Script(VecDeque<Result<Frame<Bytes>, Failure>>);

    impl http_body::Body for Script {
        type Data = Bytes;
        type Error = Failure;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn script(frames: impl IntoIterator<Item = Result<Frame<Bytes>, Failure>>) -> Body {
        Body::stream(Script(frames.into_iter().collect()))
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, Failure> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn a_whole_body_is_joined() {
        let Collected::Whole(bytes) = collect(script([data("ab"), data("cd")]), 4).await else {
            panic!("not whole")
        };
        assert_eq!(&bytes[..], b"abcd");
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_given_on_from_its_beginning() {
        let Collected::Unfinished(body, reason) =
            collect(script([data("ab"), data("cd"), data("ef")]), 3).await
        else {
            panic!("was kept")
        };
        assert_eq!(reason, "too-large");
        assert_eq!(body.collect().await.expect("complete").to_bytes(), "abcdef");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_given_on_with_its_failure() {
        let cut = Failure::new(FailureKind::UpstreamReset, "cut off");
        let Collected::Unfinished(mut body, reason) = collect(script([data("ab"), Err(cut)]), 10).await
        else {
            panic!("was kept")
        };
        assert_eq!(reason, INCOMPLETE);
        let first = body
            .frame()
            .await
            .expect("a frame")
            .expect("data")
            .into_data()
            .expect("data");
        assert_eq!(first, "ab");
        assert!(
            body.frame().await.is_some_and(|frame| frame.is_err()),
            "never a clean end"
        );
    }
}

//! How long a request body may be, by route class (`limits.body`).
//!
//! A declared length is judged before anything is read; a body without one is counted while it passes, and
//! cut off with the same failure.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::config::listen::BodyLimits;
use crate::types::Body;
use crate::types::failure::{Failure, FailureKind};
use crate::types::outcome::RouteClass;
use crate::types::units::Size;

/// The limit of one class and the key that sets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimit {
    pub(super) max: Size,
    pub(super) key: &'static str,
}

impl BodyLimit {
    pub(super) fn of(class: RouteClass, limits: &BodyLimits) -> Self {
        let (max, key) = match class {
            RouteClass::Upload => (limits.upload, "limits.body.upload"),
            RouteClass::Generation => (limits.generation, "limits.body.generation"),
            RouteClass::Passthrough => (limits.passthrough, "limits.body.passthrough"),
            _ => (limits.other, "limits.body.other"),
        };
        Self { max, key }
    }

    /// The body, counted while it passes if nothing says how long it is.
    ///
    /// # Errors
    /// [`FailureKind::BodyTooLarge`] when it is known to be too long.
    pub(super) fn apply(self, headers: &HeaderMap, body: Body) -> Result<Body, Failure> {
        let hint = http_body::Body::size_hint(&body);
        if declared_length(headers).unwrap_or(0).max(hint.lower()) > self.max.0 {
            return Err(self.exceeded());
        }
        Ok(match body {
            Body::Stream(_) if hint.exact().is_none() => Body::stream(Counted {
                body,
                left: self.max.0,
                limit: self,
            }),
            known => known,
        })
    }

    fn exceeded(self) -> Failure {
        let Self { max, key } = self;
        Failure::new(
            FailureKind::BodyTooLarge,
            format!("the request body is longer than `{key}` ({max}) allows"),
        )
    }
}

/// `Content-Length`, when there is one that is a number.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(http::header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

struct Counted {
    body: Body,
    left: u64,
    limit: BodyLimit,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        Poll::Ready(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                frame
            }
            // What came before may be at the upstream already.
            None => Some(Err(self.limit.exceeded().sent())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn limits() -> BodyLimits {
        BodyLimits {
            upload: Size(40),
            generation: Size(30),
            passthrough: Size(20),
            other: Size(10),
        }
    }

    fn chunks(count: usize) -> Body {
        let chunks = (0..count).map(|_| Ok(Frame::data(Bytes::from_static(b"12345"))));
        Body::stream(StreamBody::new(futures_util::stream::iter(chunks)))
    }

    fn apply(class: RouteClass, length: Option<&'static str>, body: Body) -> Result<Body, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static(length));
        }
        BodyLimit::of(class, &limits()).apply(&headers, body)
    }

    #[test]
    fn a_declared_length_beyond_the_limit_fails_before_the_body_is_read() {
        for (class, key, fits, too_long) in [
            (RouteClass::Upload, "limits.body.upload", "40", "41"),
            (RouteClass::Generation, "limits.body.generation", "30", "31"),
            (RouteClass::Passthrough, "limits.body.passthrough", "20", "21"),
            (RouteClass::Write, "limits.body.other", "10", "11"),
        ] {
            assert!(apply(class, Some(fits), chunks(0)).is_ok());
            let failure = apply(class, Some(too_long), chunks(0)).unwrap_err();
            assert_eq!(failure.kind, FailureKind::BodyTooLarge);
            assert!(failure.detail.contains(key), "{}", failure.detail);
            assert!(!failure.sent);
        }
        let full = Body::from(Bytes::from_static(b"12345678901"));
        assert!(apply(RouteClass::Write, None, full).is_err());
    }

    #[tokio::test]
    async fn a_streaming_body_is_cut_off_at_the_byte_beyond_the_limit() {
        let whole = apply(RouteClass::Write, None, chunks(2)).unwrap();
        assert_eq!(whole.collect().await.unwrap().to_bytes().len(), 10);

        let mut body = apply(RouteClass::Write, None, chunks(3)).unwrap();
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().unwrap().is_data());
        }
        let failure = body.frame().await.unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::BodyTooLarge);
        assert!(
            failure.detail.contains("`limits.body.other` (10)"),
            "{}",
            failure.detail
        );
        assert!(failure.sent);
    }
}

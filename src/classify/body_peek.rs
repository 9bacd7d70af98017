//! Reads a small JSON body to learn whose conversations a write changes, and hands on the same bytes.
//!
//! Only a body that is declared to be JSON (or nothing), with a known length of at most [`MAX`] bytes, is
//! waited for; every other write ends the conversations of all users.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;

use super::body_limit::declared_length;
use crate::types::Body;
use crate::types::failure::{Failure, FailureKind};

/// The longest body that is waited for, in bytes.
const MAX: u64 = 64 << 10;

/// How many bytes [`read`] would have to wait for; `None` when the body is not to be looked into.
pub(super) fn length(headers: &HeaderMap, body: &Body) -> Option<u64> {
    let length = http_body::Body::size_hint(body)
        .exact()
        .or_else(|| declared_length(headers))?;
    (length > 0 && length <= MAX && may_be_json(headers)).then_some(length)
}

fn may_be_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let Some(first) = types.next() else {
        return true;
    };
    let media = first
        .as_bytes()
        .split(|b| *b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let json = media.eq_ignore_ascii_case(b"application/json")
        || media.len() > 5 && media[media.len() - 5..].eq_ignore_ascii_case(b"+json");
    json && types.next().is_none()
}

/// The whole body of `length` bytes. Trailers, which no write of Dify has, are dropped.
///
/// # Errors
/// The body's own failure, or [`FailureKind::Malformed`] when it is longer than it was said to be.
pub(super) async fn read(mut body: Body, length: u64) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if (all.len() + data.len()) as u64 > length {
            return Err(Failure::new(
                FailureKind::Malformed,
                "the request body is longer than its Content-Length",
            ));
        }
        if all.is_empty() && data.len() as u64 == length {
            all = BytesMut::from(data);
        } else {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn chunks(chunks: &'static [&'static str]) -> Body {
        let frames = chunks
            .iter()
            .map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
        Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
    }

    fn fields(content_type: &[&'static str], length: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in content_type {
            headers.append(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        if let Some(length) = length {
            headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static(length));
        }
        headers
    }

    #[test]
    fn only_small_json_of_known_length_is_looked_into() {
        let is_read = |types: &[&'static str], len| length(&fields(types, len), &chunks(&["{}"])).is_some();
        assert!(is_read(&["application/json"], Some("2")));
        assert!(is_read(&["Application/JSON; charset=utf-8"], Some("2")));
        assert!(is_read(&["application/vnd.x+json"], Some("65536")));
        assert!(is_read(&[], Some("2")));
        assert!(!is_read(&["application/json"], None));
        assert!(!is_read(&["application/json"], Some("0")));
        assert!(!is_read(&["application/json"], Some("65537")));
        assert!(!is_read(&["multipart/form-data; boundary=x"], Some("2")));
        assert!(!is_read(&["application/jsonx"], Some("2")));
        assert!(!is_read(&["application/json", "text/plain"], Some("2")));
        let full = Body::from(Bytes::from_static(b"{}"));
        assert_eq!(length(&fields(&["application/json"], None), &full), Some(2));
    }

    #[tokio::test]
    async fn the_bytes_that_were_read_are_the_bytes_that_were_sent() {
        assert_eq!(
            read(chunks(&["{\"a\"", ":", "1}"]), 7).await.unwrap(),
            "{\"a\":1}"
        );
        assert_eq!(read(chunks(&["{}"]), 2).await.unwrap(), "{}");
        let failure = read(chunks(&["{}", "{}"]), 3).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Malformed);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_passed_on_as_its_failure() {
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"{"))),
            Err(Failure::new(FailureKind::RequestTimeout, "too slow")),
        ];
        let body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
        assert_eq!(read(body, 2).await.unwrap_err().kind, FailureKind::RequestTimeout);
    }
}

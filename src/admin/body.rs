//! Reads the JSON body of a write, an object: bounded in length and time.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::answer::Refusal;

/// The longest body.
const MAX_BYTES: usize = 64 * 1024;
/// So much of a longer one is read and dropped, so that its sender gets the answer and no reset.
const MAX_DROPPED: usize = 1024 * 1024;
/// For the whole body to arrive.
const TIME: Duration = Duration::from_secs(10);

/// Whether the content is said to be JSON. A form of a web page cannot say so.
///
/// # Errors
/// 415 when it is not.
pub(super) fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the content must be application/json";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// The whole body.
///
/// # Errors
/// 413 beyond 64 KiB, 408 after 10 seconds, 400 when it breaks off.
pub(super) async fn read<B>(body: B) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let late = |_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive within 10 seconds",
        )
    };
    tokio::time::timeout(TIME, collect(body)).await.map_err(late)?
}

/// The object that a body is.
///
/// # Errors
/// A sentence that begins with the key that it is about, if it is about one.
pub(super) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // Serde would take a list for a struct, by the order of its fields.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err("an object is expected, not a list".into());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let object =
        serde_path_to_error::deserialize(&mut json).map_err(|error| match error.path().iter().next() {
            Some(serde_path_to_error::Segment::Map { key }) => format!("{key}: {}", error.inner()),
            _ => error.into_inner().to_string(),
        })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(object)
}

async fn collect<B>(mut body: B) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= MAX_BYTES {
            bytes.extend_from_slice(&data);
        } else if length > MAX_DROPPED {
            break;
        }
    }
    if length > MAX_BYTES {
        let message = format!("the body is longer than {MAX_BYTES} bytes");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    async fn status(body: impl Body<Data = Bytes> + Unpin) -> u16 {
        read(body).await.map_or_else(|r| r.status.as_u16(), |_| 200)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_length_and_time() {
        assert_eq!(status(Full::new(Bytes::from(vec![b' '; MAX_BYTES]))).await, 200);
        assert_eq!(
            status(Full::new(Bytes::from(vec![b' '; MAX_BYTES + 1]))).await,
            413
        );
        let endless = futures_util::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b' '; 1024])))
        });
        assert_eq!(status(StreamBody::new(endless)).await, 413);
        let silent = futures_util::stream::pending::<std::io::Result<Frame<Bytes>>>();
        assert_eq!(status(StreamBody::new(silent)).await, 408);
        let broken = futures_util::stream::iter([Err(std::io::Error::other("reset"))]);
        assert_eq!(status(StreamBody::new(broken)).await, 400);
    }

    #[test]
    fn json_may_have_parameters_and_nothing_else_is_json() {
        let is_json = |kind: &str| {
            let value = HeaderValue::from_bytes(kind.as_bytes()).unwrap();
            must_be_json(&[(CONTENT_TYPE, value)].into_iter().collect()).is_ok()
        };
        assert!(is_json("application/json") && is_json("Application/JSON ; charset=utf-8"));
        for other in [
            "",
            "text/plain",
            "application/json+x",
            "multipart/form-data",
            "a;application/json",
            "\u{e9}",
        ] {
            assert!(!is_json(other), "{other}");
        }
        assert!(must_be_json(&HeaderMap::new()).is_err());
    }
}

//! One stored answer and how it is given again.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AGE, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use super::invalidation::TagVersions;
use crate::types::Body;

/// A complete answer with the deadline of its freshness.
#[derive(Debug)]
pub(super) struct Entry {
    /// Status code.
    pub status: StatusCode,
    /// Reason phrase, when it is not the usual one (Dify says `NOT FOUND`).
    pub reason: Option<ReasonPhrase>,
    /// Fields, without hop-by-hop fields, `Age` and cookies.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// When the answer was complete.
    pub stored_at: Instant,
    /// How old it was then (RFC 9111 section 4.2.3).
    pub initial_age: Duration,
    /// When it stops being fresh.
    pub fresh_until: Instant,
    /// What it depends on.
    pub versions: TagVersions,
}

/// What an entry takes beside its bytes and fields: its place in moka (some 350 bytes), this struct, and the
/// bookkeeping of its allocations.
const OVERHEAD: usize = 768;
/// What a field takes beside its bytes: its bucket in the header map (104), and of a name that `http` does not know,
/// some 80 more.
const FIELD_OVERHEAD: usize = 144;

/// The same fields in memory of their own, all values in one buffer. As they come from a connection, each keeps the
/// whole buffer that it was read into.
pub(super) fn detached(headers: &HeaderMap) -> HeaderMap {
    let mut bytes = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers
        .values()
        .for_each(|value| bytes.extend_from_slice(value.as_bytes()));
    let mut bytes = bytes.freeze();
    let mut own = headers.clone();
    for value in own.values_mut() {
        // What was a value is one.
        if let Ok(mut copy) = HeaderValue::from_maybe_shared(bytes.split_to(value.len())) {
            copy.set_sensitive(value.is_sensitive());
            *value = copy;
        }
    }
    own
}

impl Entry {
    /// Bytes that this entry holds in memory, about.
    pub(super) fn weight(&self) -> u32 {
        let fields: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + FIELD_OVERHEAD)
            .sum();
        u32::try_from(self.body.len() + fields + OVERHEAD).unwrap_or(u32::MAX)
    }

    /// Current age (RFC 9111 section 4.2.3).
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.stored_at)
    }

    /// What is left of its freshness; zero when it is stale.
    pub(super) fn ttl(&self, now: Instant) -> Duration {
        self.fresh_until.saturating_duration_since(now)
    }

    /// The answer to one more request of `method`, with its `Age`.
    pub(super) fn response(&self, method: &Method, now: Instant) -> Response<Body> {
        let head_only = method == Method::HEAD;
        let body = if head_only {
            Body::Empty
        } else {
            Body::from(self.body.clone())
        };
        let mut response = self.head(body);
        if head_only && !self.headers.contains_key(CONTENT_LENGTH) {
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        response
            .headers_mut()
            .insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        response
    }

    /// The answer as it came, for the GETs that were waiting for it.
    pub(super) fn fetched_response(&self) -> Response<Body> {
        let mut response = self.head(Body::from(self.body.clone()));
        if !self.initial_age.is_zero() {
            response
                .headers_mut()
                .insert(AGE, HeaderValue::from(self.initial_age.as_secs()));
        }
        response
    }

    fn head(&self, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        if let Some(reason) = &self.reason {
            response.extensions_mut().insert(reason.clone());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detached_fields_are_the_same_and_keep_nothing_of_the_buffer_that_they_were_read_into() {
        let mut buffer = BytesMut::with_capacity(8192);
        let mut read = |text: &str| {
            buffer.extend_from_slice(text.as_bytes());
            HeaderValue::from_maybe_shared(buffer.split().freeze()).expect("a value")
        };
        let mut fields = HeaderMap::new();
        fields.append("etag", read("\"1\""));
        fields.append("vary", read("origin"));
        fields.append("vary", read("accept"));
        fields.append("x-empty", read(""));
        let mut secret = read("secret");
        secret.set_sensitive(true);
        fields.append("x-secret", secret);

        let own = detached(&fields);
        assert_eq!(own, fields);
        assert!(own["x-secret"].is_sensitive() && !own["etag"].is_sensitive());
        assert!(!buffer.try_reclaim(8192), "the fields as they came keep it");
        drop(fields);
        assert!(buffer.try_reclaim(8192));
    }
}

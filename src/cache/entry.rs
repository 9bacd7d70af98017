//! One stored answer and how it is given again.

use std::time::Duration;

use bytes::Bytes;
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

/// What moka, the map node and the header map's own tables take beside the bytes themselves.
const OVERHEAD: usize = 512;

impl Entry {
    /// Bytes that this entry holds in memory, about.
    pub(super) fn weight(&self) -> u32 {
        let fields: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 64)
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

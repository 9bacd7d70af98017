//! One stored answer: how long it may be used for what, and how it is given again.

use std::time::Duration;

use http::header::{AGE, CONTENT_LENGTH};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use super::freshness::Storable;
use super::invalidation::TagVersions;
use super::packed::Packed;
use super::request_control::Selective;
use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::Body;

/// How long a failed refresh is not tried again.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// How long after a failure the stale answer is given at once; then the origin is asked first again.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// A complete answer with the deadlines of its use.
#[derive(Debug)]
pub(super) struct Entry {
    /// Status code.
    pub status: StatusCode,
    /// Reason phrase, when it is not the usual one (Dify says `NOT FOUND`).
    pub reason: Option<Box<ReasonPhrase>>,
    /// Fields, without hop-by-hop fields, `Age` and cookies, and the whole body.
    pub packed: Packed,
    /// What a request may ask of it.
    pub selective: Selective,
    /// The route that it answers.
    pub template: &'static str,
    /// When it was asked for: the time that the answer took is part of its age (RFC 9111 section 4.2.3).
    pub asked_at: Instant,
    /// When it was last known to be what all instances would give: when it was asked for, or found in the shared tier.
    pub checked_at: Instant,
    /// Its lifetimes from then on, and how old it was.
    pub life: Storable,
    /// What it depends on.
    pub versions: TagVersions,
    /// What happened to it since.
    pub fate: Fate,
}

/// What changes about a stored answer while others read it.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Times it answered, when refresh-ahead wants to know.
    hits: AtomicU32,
    /// Milliseconds after `asked_at` until which a try to replace it counts as failed.
    failed_until: AtomicU64,
    /// Milliseconds after `asked_at` before which nobody tries to replace it in the background.
    retry_at: AtomicU64,
}

/// How old an answer is for its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Staleness {
    /// Not at all.
    Fresh,
    /// It may be used while a new one is fetched (RFC 5861 section 3).
    WhileRevalidating,
    /// It may be used when no new one can be had (RFC 5861 section 4).
    OnError,
    /// It may not be used.
    Expired,
}

/// What an entry takes beside its fields and content: its place in moka (some 360 bytes), this struct and the
/// bookkeeping of its allocations (some 340), and what the allocator loses between them (measured with small answers).
const OVERHEAD: usize = 960;

impl Entry {
    /// Bytes that this entry holds in memory, about.
    pub(super) fn weight(&self) -> u32 {
        u32::try_from(self.packed.len() + OVERHEAD).unwrap_or(u32::MAX)
    }

    /// Current age (RFC 9111 section 4.2.3).
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.life.age + self.since(now)
    }

    /// What is left of its freshness; zero when it is stale.
    pub(super) fn ttl(&self, now: Instant) -> Duration {
        self.life.ttl.saturating_sub(self.since(now))
    }

    /// What is left of its freshness in whole seconds, negative when it is stale (RFC 9211 section 2.5).
    pub(super) fn signed_ttl(&self, now: Instant) -> i64 {
        let (ttl, since) = (self.life.ttl, self.since(now));
        match ttl.checked_sub(since) {
            Some(left) => left.as_secs() as i64,
            None => -((since - ttl).as_secs() as i64),
        }
    }

    /// How old it is for its purpose. `marked`: whether it was made stale before its time, at an unknown moment:
    /// then both windows begin now.
    pub(super) fn staleness(&self, marked: bool, now: Instant) -> Staleness {
        let stale = self.since(now).checked_sub(self.life.ttl);
        let stale = match (stale, marked) {
            (None, false) => return Staleness::Fresh,
            (None, true) => Duration::ZERO,
            (Some(stale), _) => stale,
        };
        if stale < self.life.stale_while_revalidate {
            Staleness::WhileRevalidating
        } else if stale < self.life.stale_if_error {
            Staleness::OnError
        } else {
            Staleness::Expired
        }
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.asked_at)
    }

    /// Whether it is one of the hot ones near the end of its freshness.
    pub(super) fn is_hot_and_ageing(&self, last: f64, min_hits: u32, now: Instant) -> bool {
        let hits = self.fate.hits.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        hits >= min_hits && self.ttl(now) < self.life.ttl.mul_f64(last)
    }

    /// Whether a try to replace it failed a short while ago.
    pub(super) fn refresh_failed(&self, now: Instant) -> bool {
        (self.since(now).as_millis() as u64) < self.fate.failed_until.load(Ordering::Relaxed)
    }

    /// Whether a background refresh is due; the one who is told so has to begin it.
    pub(super) fn take_refresh(&self, now: Instant) -> bool {
        let millis = |span: Duration| span.as_millis() as u64;
        let (now, next) = (millis(self.since(now)), millis(self.since(now) + REFRESH_PAUSE));
        let due = self.fate.retry_at.load(Ordering::Relaxed);
        due <= now
            && self
                .fate
                .retry_at
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// A try to replace it failed.
    pub(super) fn set_refresh_failed(&self, now: Instant) {
        let until = (self.since(now) + FAILED_FOR).as_millis() as u64;
        self.fate.failed_until.fetch_max(until, Ordering::Relaxed);
    }

    /// The answer to one more request of `method`, with its `Age`.
    pub(super) fn response(&self, method: &Method, now: Instant) -> Response<Body> {
        let head_only = method == Method::HEAD;
        let body = if head_only {
            Body::Empty
        } else {
            Body::from(self.packed.body())
        };
        let mut response = self.head(body);
        let headers = response.headers_mut();
        if head_only && !headers.contains_key(CONTENT_LENGTH) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.packed.body_len()));
        }
        headers.insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        response
    }

    /// The answer as it came, for the GETs that were waiting for it.
    pub(super) fn fetched_response(&self) -> Response<Body> {
        let mut response = self.head(Body::from(self.packed.body()));
        if !self.life.age.is_zero() {
            response
                .headers_mut()
                .insert(AGE, HeaderValue::from(self.life.age.as_secs()));
        }
        response
    }

    fn head(&self, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.packed.headers();
        if let Some(reason) = &self.reason {
            response.extensions_mut().insert(ReasonPhrase::clone(reason));
        }
        response
    }
}

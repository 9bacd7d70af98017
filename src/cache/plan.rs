//! What the cache means to do with a request, before and after it has looked. Pure, so that `explain` tells what
//! the request path does.

use http::{HeaderMap, Method};
use tokio::time::Instant;

use super::cache_status::Forward;
use super::entry::{Entry, Staleness};
use super::invalidation::Validity;
use super::request_control::{RequestControl, needs_origin};
use crate::types::ids::Principal;
use crate::types::request::{CacheClass, Decision};

/// What is to be done before anything stored is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Forward it, and end what it changes.
    Write,
    /// Forward it; the cache has no part in it. With one word more.
    Pass(Forward, &'static str),
    /// Look for an answer for this principal.
    LookUp(Principal, RequestControl),
}

impl Plan {
    /// Decides from everything but what is stored. `keeps`: whether anything is kept at all
    /// (`cache.enable_local`).
    pub fn of(
        method: &Method,
        headers: &HeaderMap,
        has_body: bool,
        decision: &Decision,
        keeps: bool,
    ) -> Self {
        let class = decision.class.as_str();
        if !decision.invalidates.is_empty() {
            return Self::Write;
        }
        if method != Method::GET && method != Method::HEAD {
            return Self::Pass(Forward::Method, class);
        }
        if decision.cache == CacheClass::Never || !keeps {
            return Self::Pass(Forward::Bypass, class);
        }
        let Some(principal) = decision.principal else {
            return Self::Pass(Forward::Bypass, "no-principal");
        };
        if has_body {
            return Self::Pass(Forward::Bypass, "request-body");
        }
        let control = RequestControl::of(headers);
        if control.no_store {
            return Self::Pass(Forward::Request, "no-store");
        }
        Self::LookUp(principal, control)
    }
}

/// Why a stale answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StaleUse {
    /// A new one is being fetched (RFC 5861 section 3).
    WhileRevalidating,
    /// No new one can be had (RFC 5861 section 4).
    OnError,
}

impl StaleUse {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::WhileRevalidating => "stale-while-revalidate",
            Self::OnError => "stale-if-error",
        }
    }
}

/// What a stored answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the answer.
    Hit,
    /// It is the answer although it is stale.
    Stale(StaleUse),
    /// The origin has to be asked; the answer may do if that fails.
    Fallback,
    /// The origin has to be asked, for this reason.
    Forward(Forward),
    /// The origin has to evaluate a condition or range.
    Condition,
}

/// Whether `entry` answers a request with these fields and directives at `now`.
pub(super) fn judge(
    entry: &Entry,
    validity: Validity,
    headers: &HeaderMap,
    control: &RequestControl,
    now: Instant,
) -> Verdict {
    if control.no_cache {
        // Not even somebody else's fetch will do.
        return Verdict::Forward(Forward::Request);
    }
    if validity == Validity::Ended {
        return Verdict::Forward(Forward::Stale);
    }
    let verdict = match entry.staleness(validity == Validity::Stale, now) {
        Staleness::Fresh => Verdict::Hit,
        Staleness::WhileRevalidating => Verdict::Stale(StaleUse::WhileRevalidating),
        Staleness::OnError if entry.refresh_failed(now) => Verdict::Stale(StaleUse::OnError),
        Staleness::OnError => return Verdict::Fallback,
        Staleness::Expired => return Verdict::Forward(Forward::Stale),
    };
    // Who asks for an age or freshness wants nothing stale (RFC 9111 section 5.2.1.1).
    let stale = matches!(verdict, Verdict::Stale(_));
    let strict = control.max_age.is_some() || control.min_fresh.is_some();
    if needs_origin(headers, entry.selective) {
        Verdict::Condition
    } else if !(stale && strict) && control.accepts(entry.age(now), entry.ttl(now)) {
        verdict
    } else {
        Verdict::Forward(Forward::Request)
    }
}

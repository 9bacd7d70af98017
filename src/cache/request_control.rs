//! What a request itself asks of a cache: `Cache-Control` directives (RFC 9111 section 5.2.1), conditions and
//! ranges.

use std::time::Duration;

use http::HeaderMap;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, PRAGMA, RANGE,
};

use super::freshness::directives;

/// The directives of a request that change what this cache does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestControl {
    /// Nothing stored may answer.
    pub no_cache: bool,
    /// The answer may not be stored.
    pub no_store: bool,
    /// Nothing may be fetched.
    pub only_if_cached: bool,
    /// The oldest answer that will do.
    pub max_age: Option<Duration>,
    /// The freshness that must be left.
    pub min_fresh: Option<Duration>,
}

impl RequestControl {
    /// Reads the directives; without any field this costs two look-ups.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111 section 5.4: Pragma counts only without Cache-Control.
            control.no_cache = headers
                .get(PRAGMA)
                .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"no-cache"));
            return control;
        }
        for (name, value) in directives(headers) {
            let seconds = || value.and_then(|v| v.parse().ok()).map(Duration::from_secs);
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => control.no_cache = true,
                "no-store" => control.no_store = true,
                "only-if-cached" => control.only_if_cached = true,
                "max-age" => control.max_age = seconds(),
                "min-fresh" => control.min_fresh = seconds(),
                _ => {}
            }
        }
        control
    }

    /// Whether an answer of this age and remaining freshness will do.
    pub(super) fn accepts(&self, age: Duration, ttl: Duration) -> bool {
        !self.no_cache
            && self.max_age.is_none_or(|limit| age <= limit)
            && self.min_fresh.is_none_or(|least| ttl >= least)
    }
}

/// What of an answer a request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selective {
    /// It has validators, so conditions have a meaning.
    validators: bool,
    /// Its origin serves ranges of it.
    ranges: bool,
}

impl Selective {
    /// Reads the fields of an answer.
    pub(crate) fn of(answer: &HeaderMap) -> Self {
        Self {
            validators: answer.contains_key(ETAG) || answer.contains_key(LAST_MODIFIED),
            ranges: answer.contains_key(ACCEPT_RANGES),
        }
    }
}

/// Whether the request has a condition or range that the stored answer gives a meaning to. An answer without
/// validators and ranges (all JSON of Dify) is given whole, as Dify does.
pub(crate) fn needs_origin(request: &HeaderMap, stored: Selective) -> bool {
    if !stored.validators && !stored.ranges {
        return false;
    }
    let conditional = [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_MATCH, IF_UNMODIFIED_SINCE]
        .iter()
        .any(|name| request.contains_key(name));
    let ranged = request.contains_key(RANGE) || request.contains_key(IF_RANGE);
    (conditional && stored.validators) || (ranged && stored.ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (n.parse().expect("name"), v.parse().expect("value")))
            .collect()
    }

    #[test]
    fn directives_are_read_in_any_case_and_pragma_only_without_them() {
        let control = RequestControl::of(&headers(&[("cache-control", "Max-Age=5, NO-STORE")]));
        assert_eq!(control.max_age, Some(Duration::from_secs(5)));
        assert!(control.no_store && !control.no_cache);
        assert!(RequestControl::of(&headers(&[("pragma", "no-cache")])).no_cache);
        assert!(
            !RequestControl::of(&headers(&[
                ("pragma", "no-cache"),
                ("cache-control", "max-age=1")
            ]))
            .no_cache
        );
        assert_eq!(RequestControl::of(&headers(&[])), RequestControl::default());
    }

    #[test]
    fn age_and_freshness_that_a_request_asks_for_are_honoured() {
        let control = RequestControl::of(&headers(&[("cache-control", "max-age=5, min-fresh=10")]));
        let secs = Duration::from_secs;
        assert!(control.accepts(secs(5), secs(10)));
        assert!(!control.accepts(secs(6), secs(10)));
        assert!(!control.accepts(secs(5), secs(9)));
    }

    #[test]
    fn a_condition_matters_only_to_an_answer_with_validators() {
        let condition = headers(&[("if-none-match", "*")]);
        let stored = |fields: &[(&'static str, &str)]| Selective::of(&headers(fields));
        let plain = stored(&[("content-type", "application/json")]);
        let (tagged, ranged) = (
            stored(&[("etag", "\"1\"")]),
            stored(&[("accept-ranges", "bytes")]),
        );
        assert!(!needs_origin(&condition, plain) && !needs_origin(&condition, ranged));
        assert!(needs_origin(&condition, tagged));
        let range = headers(&[("range", "bytes=0-9")]);
        assert!(!needs_origin(&range, plain) && !needs_origin(&range, tagged));
        assert!(needs_origin(&range, ranged));
    }
}

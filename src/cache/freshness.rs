//! May this answer be stored, and for how long? Pure functions over fields, class and time (RFC 9111).
//!
//! Every "no" has a reason, which `Cache-Status` shows.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, EXPIRES, SET_COOKIE, TRAILER,
    VARY,
};
use http::{HeaderMap, StatusCode};
use memchr::memmem;

use super::signed_urls;
use crate::config::cache::{CacheConfig, ClassConfig, SetCookie};
use crate::types::request::CacheClass;
use crate::types::time::Now;

/// Why an answer is not stored: a word for `Cache-Status; detail=`.
pub type Reason = &'static str;

/// How an answer that may be stored is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storable {
    /// For how long it is fresh from now.
    pub ttl: Duration,
    /// How old it was when it came.
    pub age: Duration,
    /// How long after that it may still be given while a new one is fetched (RFC 5861 section 3).
    pub stale_while_revalidate: Duration,
    /// How long after that it may be given when no new one can be had (RFC 5861 section 4).
    pub stale_if_error: Duration,
}

impl Storable {
    /// Cuts everything to `ceiling` from now on.
    fn within(self, ceiling: Duration) -> Self {
        let ttl = self.ttl.min(ceiling);
        Self {
            ttl,
            stale_while_revalidate: self.stale_while_revalidate.min(ceiling - ttl),
            stale_if_error: self.stale_if_error.min(ceiling - ttl),
            ..self
        }
    }

    /// Leaves no stale use.
    fn fresh_only(self) -> Self {
        self.within(self.ttl)
    }

    /// From now to the end of every use.
    pub fn life(&self) -> Duration {
        self.ttl + self.stale_while_revalidate.max(self.stale_if_error)
    }
}

/// Decides by status and fields alone.
///
/// `cookie_in_key`: whether the request's whole `Cookie` is part of the key, so that `Vary: Cookie` is kept.
///
/// # Errors
/// The reason, when the answer must not be stored.
pub fn by_head(
    class: CacheClass,
    status: StatusCode,
    headers: &HeaderMap,
    cookie_in_key: bool,
    config: &CacheConfig,
    now: Now,
) -> Result<Storable, Reason> {
    let settings = class_settings(class, status, config)?;
    vary_is_covered(headers, cookie_in_key)?;
    if headers.contains_key(SET_COOKIE) && settings.set_cookie == SetCookie::Refuse {
        return Err("set-cookie");
    }
    let event_stream = headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    if event_stream {
        return Err("event-stream");
    }
    if headers.contains_key(TRAILER) {
        return Err("trailers");
    }
    if headers.contains_key(CONTENT_RANGE) {
        return Err("range");
    }
    let told = told_lifetimes(headers, now)?;
    let explicit = told.fresh;
    let mut age = told_age(headers);
    if explicit.is_some()
        && let Some(made) = date(headers, &DATE)
    {
        // It may be older than it says (RFC 9111 section 4.2.3). Only where the origin reckons with time: a clock
        // that goes wrong does not shorten the lifetimes of classes.
        age = age.max(now.wall.duration_since(made).unwrap_or_default());
    }
    let ceiling = Duration::from_secs(config.ttl_seconds);
    let mut ttl = settings.ttl.0.min(ceiling);
    match explicit {
        Some(lifetime) => ttl = ttl.min(lifetime.saturating_sub(age)),
        None if class == CacheClass::Origin => return Err("no-explicit-freshness"),
        None => {}
    }
    let mut storable = Storable {
        ttl,
        age,
        stale_while_revalidate: told
            .stale_while_revalidate
            .unwrap_or(settings.stale_while_revalidate.0),
        stale_if_error: told.stale_if_error.unwrap_or(settings.stale_if_error.0),
    }
    .within(ceiling);
    if told.must_revalidate {
        storable = storable.fresh_only();
    }
    if headers.contains_key(CONTENT_ENCODING) && class != CacheClass::Origin {
        // A signed URL cannot be seen in an encoded body: assume one that was made just now.
        storable.ttl = storable.ttl.min(config.signed_url_life.0 / 5);
        storable = storable.fresh_only();
    }
    if storable.ttl.is_zero() {
        Err("ttl-0")
    } else {
        Ok(storable)
    }
}

/// Decides by the body what [`by_head`] could not see.
///
/// # Errors
/// The reason, when the answer must not be stored.
pub fn by_body(
    class: CacheClass,
    headers: &HeaderMap,
    body: &[u8],
    storable: Storable,
    config: &CacheConfig,
    now: Now,
) -> Result<Storable, Reason> {
    if class == CacheClass::Run && (headers.contains_key(CONTENT_ENCODING) || !is_ended_run(body)) {
        return Err("run-not-ended");
    }
    let text = headers.get(CONTENT_TYPE).is_none_or(|v| {
        let v = v.as_bytes();
        v.starts_with(b"text/") || memmem::find(v, b"json").is_some()
    });
    if !text {
        return Ok(storable);
    }
    let Some(signed_at) = signed_urls::earliest_timestamp(body) else {
        return Ok(storable);
    };
    let left = (signed_at + config.signed_url_life.0.as_secs()).saturating_sub(now.unix_seconds());
    let ttl = storable.ttl.min(Duration::from_secs(left) / 5);
    if ttl.is_zero() {
        Err("signed-url")
    } else {
        // A stale answer would show URLs that have ended.
        Ok(Storable { ttl, ..storable }.fresh_only())
    }
}

pub(crate) fn class_settings(
    class: CacheClass,
    status: StatusCode,
    config: &CacheConfig,
) -> Result<&ClassConfig, Reason> {
    let classes = &config.classes;
    match (class, status) {
        (CacheClass::Never, _) => Err("class"),
        (CacheClass::Metadata, StatusCode::OK) => Ok(&classes.metadata),
        (CacheClass::Listing, StatusCode::OK) => Ok(&classes.listing),
        (CacheClass::Run, StatusCode::OK) => Ok(&classes.run),
        (CacheClass::Origin, StatusCode::OK) => Ok(&classes.origin),
        (CacheClass::Metadata | CacheClass::Listing, StatusCode::NOT_FOUND) => Ok(&classes.not_found),
        _ => Err("status"),
    }
}

/// Fields whose value is part of every key, directly or in the principal.
const IN_KEY: [&str; 3] = ["origin", "accept-encoding", "authorization"];

fn vary_is_covered(headers: &HeaderMap, cookie_in_key: bool) -> Result<(), Reason> {
    for value in headers.get_all(VARY) {
        let value = value.to_str().map_err(|_| "vary")?;
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let covered = IN_KEY.iter().any(|known| name.eq_ignore_ascii_case(known))
                || (cookie_in_key && name.eq_ignore_ascii_case("cookie"));
            if !covered {
                return Err("vary");
            }
        }
    }
    Ok(())
}

/// What an answer says of its own lifetimes.
#[derive(Default)]
struct Told {
    /// Explicit freshness: `s-maxage` before `max-age` before `Expires` (RFC 9111 section 4.2.1). An invalid one
    /// counts as stale.
    fresh: Option<Duration>,
    stale_while_revalidate: Option<Duration>,
    stale_if_error: Option<Duration>,
    /// It must not be given when stale (RFC 9111 section 5.2.2.2, 5.2.2.8 and 5.2.2.10).
    must_revalidate: bool,
}

fn told_lifetimes(headers: &HeaderMap, now: Now) -> Result<Told, Reason> {
    let mut told = Told::default();
    if !headers.contains_key(CACHE_CONTROL) && !headers.contains_key(EXPIRES) {
        return Ok(told);
    }
    if headers
        .get_all(CACHE_CONTROL)
        .iter()
        .any(|value| value.to_str().is_err())
    {
        // What cannot be read may say no-store.
        return Err("cache-control");
    }
    let (mut max_age, mut s_maxage) = (None, None);
    for (name, value) in directives(headers) {
        let seconds = || Some(value.and_then(parse_delta).unwrap_or(Duration::ZERO));
        // A repeated directive: the strictest one counts (RFC 9111 section 4.2.1).
        let strictest = |known: &mut Option<Duration>| *known = (*known).min(seconds()).or_else(seconds);
        match name.to_ascii_lowercase().as_str() {
            "no-store" => return Err("no-store"),
            "no-cache" => return Err("no-cache"),
            "private" => return Err("private"),
            "max-age" => strictest(&mut max_age),
            "s-maxage" => {
                strictest(&mut s_maxage);
                told.must_revalidate = true;
            }
            "must-revalidate" | "proxy-revalidate" => told.must_revalidate = true,
            "stale-while-revalidate" => strictest(&mut told.stale_while_revalidate),
            "stale-if-error" => strictest(&mut told.stale_if_error),
            _ => {}
        }
    }
    told.fresh = s_maxage.or(max_age);
    if told.fresh.is_none() && headers.contains_key(EXPIRES) {
        let made = date(headers, &DATE).unwrap_or(now.wall);
        let expires = date(headers, &EXPIRES).and_then(|at| at.duration_since(made).ok());
        told.fresh = Some(expires.unwrap_or(Duration::ZERO));
    }
    Ok(told)
}

fn date(headers: &HeaderMap, name: &http::HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(single(headers, name)?).ok()
}

/// The age that caches nearer to the origin tell; one that cannot be read is as good as forever.
fn told_age(headers: &HeaderMap) -> Duration {
    if !headers.contains_key(AGE) {
        return Duration::ZERO;
    }
    single(headers, &AGE).and_then(parse_delta).unwrap_or(FOREVER)
}

/// As long as a cache must be able to count (RFC 9111 section 1.2.2).
const FOREVER: Duration = Duration::from_secs(1 << 31);

/// delta-seconds; a number too large for us is as good as forever.
fn parse_delta(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(
        text.parse::<u32>().unwrap_or(u32::MAX >> 1).into(),
    ))
}

fn single<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The directives of `Cache-Control` as (name, value without quotes).
pub(super) fn directives(headers: &HeaderMap) -> impl Iterator<Item = (&str, Option<&str>)> {
    headers
        .get_all(CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        })
}

/// Whether the body of `GET /v1/workflows/run/{id}` is that of a run that has ended. An unknown or foreign id
/// is answered with 200 and nulls, which may turn into a run later.
fn is_ended_run(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Run<'a> {
        #[serde(borrow)]
        id: Option<std::borrow::Cow<'a, str>>,
        #[serde(borrow)]
        status: Option<std::borrow::Cow<'a, str>>,
    }
    serde_json::from_slice::<Run<'_>>(body).is_ok_and(|run| {
        run.id.is_some()
            && matches!(
                run.status.as_deref(),
                Some("succeeded" | "failed" | "stopped" | "partial-succeeded" | "exception")
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;
    use crate::types::units::Span;
    use proptest::prelude::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, value.parse().expect("a field value"));
        }
        map
    }

    fn decide(class: CacheClass, status: u16, fields: &[(&'static str, &str)]) -> Result<u64, Reason> {
        let status = StatusCode::from_u16(status).expect("a status");
        let config = CacheConfig::default();
        by_head(
            class,
            status,
            &headers(fields),
            false,
            &config,
            Clock::System.now(),
        )
        .map(|s| s.ttl.as_secs())
    }

    #[test]
    fn each_class_has_its_lifetime_and_only_200_and_404_are_kept() {
        assert_eq!(decide(CacheClass::Metadata, 200, &[]), Ok(60));
        assert_eq!(decide(CacheClass::Listing, 200, &[]), Ok(5));
        assert_eq!(decide(CacheClass::Run, 200, &[]), Ok(3600));
        assert_eq!(decide(CacheClass::Metadata, 404, &[]), Ok(5));
        assert_eq!(decide(CacheClass::Run, 404, &[]), Err("status"));
        assert_eq!(decide(CacheClass::Never, 200, &[]), Err("class"));
        for status in [201, 204, 206, 301, 304, 400, 401, 403, 429, 500, 502, 503] {
            assert_eq!(
                decide(CacheClass::Metadata, status, &[]),
                Err("status"),
                "{status}"
            );
        }
    }

    #[test]
    fn an_unknown_route_is_kept_only_for_what_the_origin_says() {
        let origin = |value| decide(CacheClass::Origin, 200, &[("cache-control", value)]);
        assert_eq!(decide(CacheClass::Origin, 200, &[]), Err("no-explicit-freshness"));
        assert_eq!(origin("public, max-age=100"), Ok(100));
        assert_eq!(origin("max-age=100, s-maxage=7"), Ok(7));
        assert_eq!(origin("max-age=100, max-age=50"), Ok(50));
        assert_eq!(origin("max-age=99999999999"), Ok(3600), "the ceiling holds");
        assert_eq!(origin("max-age=0"), Err("ttl-0"));
        assert_eq!(origin("max-age=ten"), Err("ttl-0"));
        assert_eq!(origin("public"), Err("no-explicit-freshness"));
        for no in [
            "no-store",
            "no-cache",
            "private",
            "NO-STORE, max-age=5",
            "max-age=5, no-cache=\"x\"",
        ] {
            assert!(origin(no).is_err(), "{no}");
        }
        let aged = [("cache-control", "max-age=100"), ("age", "40")];
        assert_eq!(decide(CacheClass::Origin, 200, &aged), Ok(60));
        let unreadable_age = [("cache-control", "max-age=100"), ("age", "99999999999999999999")];
        assert_eq!(decide(CacheClass::Origin, 200, &unreadable_age), Err("ttl-0"));
        let old = [
            ("date", "Wed, 22 Nov 2000 16:00:00 GMT"),
            ("cache-control", "max-age=100"),
        ];
        assert_eq!(
            decide(CacheClass::Origin, 200, &old),
            Err("ttl-0"),
            "older than it says"
        );
        assert_eq!(
            decide(CacheClass::Metadata, 200, &old[..1]),
            Ok(60),
            "a class has a lifetime of its own"
        );
        assert_eq!(origin("no-store, x=\"\u{e9}\""), Err("cache-control"));
        assert_eq!(
            decide(CacheClass::Origin, 200, &[("content-range", "bytes 0-1/2")]),
            Err("range")
        );
        let dates = [
            ("date", "Fri, 22 Nov 2126 16:00:00 GMT"),
            ("expires", "Fri, 22 Nov 2126 16:01:00 GMT"),
        ];
        assert_eq!(decide(CacheClass::Origin, 200, &dates), Ok(60));
        assert_eq!(decide(CacheClass::Origin, 200, &[("expires", "0")]), Err("ttl-0"));
    }

    #[test]
    fn what_the_key_does_not_cover_is_not_kept() {
        let vary = |value| decide(CacheClass::Metadata, 200, &[("vary", value)]);
        assert_eq!(vary("Origin, Accept-Encoding"), Ok(60));
        assert_eq!(vary("Cookie"), Err("vary"));
        assert_eq!(vary("*"), Err("vary"));
        let config = CacheConfig::default();
        let fields = headers(&[("vary", "Cookie"), ("cache-control", "max-age=9")]);
        let now = Clock::System.now();
        assert!(by_head(CacheClass::Origin, StatusCode::OK, &fields, true, &config, now).is_ok());
    }

    #[test]
    fn cookies_are_refused_unless_the_class_strips_them() {
        let fields = [("set-cookie", "x-token=secret")];
        assert_eq!(decide(CacheClass::Metadata, 200, &fields), Err("set-cookie"));
        let mut config = CacheConfig::default();
        config.classes.metadata.set_cookie = SetCookie::Strip;
        let now = Clock::System.now();
        let stored = by_head(
            CacheClass::Metadata,
            StatusCode::OK,
            &headers(&fields),
            false,
            &config,
            now,
        );
        assert!(stored.is_ok());
    }

    #[test]
    fn an_answer_with_a_signed_url_lives_for_a_fifth_of_what_is_left_of_it() {
        let mut config = CacheConfig::default();
        config.classes.metadata.ttl = Span::secs(3600);
        let now = Clock::System.now();
        let storable = Storable {
            ttl: Duration::from_secs(3600),
            age: Duration::ZERO,
            stale_while_revalidate: Duration::from_secs(60),
            stale_if_error: Duration::from_secs(60),
        };
        let decide = |signed_at: u64| {
            let body = format!("{{\"url\":\"/f?timestamp={signed_at}&nonce=1&sign=x\"}}");
            by_body(
                CacheClass::Metadata,
                &HeaderMap::new(),
                body.as_bytes(),
                storable,
                &config,
                now,
            )
            .map(|s| {
                assert_eq!(s.life(), s.ttl, "never given when stale");
                s.ttl.as_secs()
            })
        };
        assert_eq!(decide(now.unix_seconds()), Ok(60));
        assert_eq!(decide(now.unix_seconds() - 200), Ok(20));
        assert_eq!(decide(now.unix_seconds() - 300), Err("signed-url"));
        let encoded = headers(&[("content-encoding", "br")]);
        let head = by_head(
            CacheClass::Metadata,
            StatusCode::OK,
            &encoded,
            false,
            &config,
            now,
        );
        assert_eq!(
            head.map(|s| s.ttl.as_secs()),
            Ok(60),
            "an encoded body may hide one"
        );
    }

    #[test]
    fn a_run_is_kept_only_after_it_has_ended() {
        assert!(is_ended_run(
            br#"{"id":"1","status":"succeeded","outputs":{"a":[1]}}"#
        ));
        assert!(is_ended_run(br#"{"status":"stopped","id":"1"}"#));
        assert!(!is_ended_run(br#"{"id":"1","status":"running"}"#));
        assert!(!is_ended_run(br#"{"id":null,"status":null}"#));
        assert!(!is_ended_run(br#"{"id":null,"status":"succeeded"}"#));
        assert!(!is_ended_run(b"not json"));
    }

    #[test]
    fn the_windows_of_stale_use_are_those_of_the_class_or_of_the_answer_and_end_at_the_ceiling() {
        let windows = |class, value: &str, ceiling| {
            let config = CacheConfig {
                ttl_seconds: ceiling,
                ..CacheConfig::default()
            };
            let mut fields = HeaderMap::new();
            if !value.is_empty() {
                fields.insert(CACHE_CONTROL, value.parse().expect("a field value"));
            }
            let s = by_head(
                class,
                StatusCode::OK,
                &fields,
                false,
                &config,
                Clock::System.now(),
            )
            .expect("is stored");
            (s.stale_while_revalidate.as_secs(), s.stale_if_error.as_secs())
        };
        assert_eq!(windows(CacheClass::Metadata, "", 7200), (60, 3600));
        assert_eq!(
            windows(CacheClass::Metadata, "", 100),
            (40, 40),
            "60 seconds of 100 are freshness"
        );
        assert_eq!(windows(CacheClass::Listing, "", 7200), (0, 0));
        let told = "max-age=9, stale-while-revalidate=5, stale-if-error=\"7\"";
        assert_eq!(windows(CacheClass::Origin, told, 7200), (5, 7));
        assert_eq!(windows(CacheClass::Metadata, "stale-if-error=x", 7200), (60, 0));
        for strict in ["must-revalidate", "proxy-revalidate", "s-maxage=60"] {
            assert_eq!(windows(CacheClass::Metadata, strict, 7200), (0, 0), "{strict}");
        }
    }

    proptest! {
        #[test]
        fn no_lifetime_is_ever_above_class_and_ceiling(
            value in "(max-age|s-maxage|public|no-store|private|x)(=\"?[0-9]{0,12}\"?)?(, ?(max-age|s-maxage)=[0-9]{0,12})?",
            age in proptest::option::of(0u32..10_000),
        ) {
            let mut fields = headers(&[("cache-control", &value)]);
            if let Some(age) = age { fields.insert(AGE, age.into()); }
            let config = CacheConfig::default();
            for class in [CacheClass::Metadata, CacheClass::Listing, CacheClass::Run, CacheClass::Origin] {
                if let Ok(s) = by_head(class, StatusCode::OK, &fields, false, &config, Clock::System.now()) {
                    prop_assert!(s.life() <= Duration::from_secs(3600) && !s.ttl.is_zero());
                    prop_assert!(!value.contains("no-store"));
                }
            }
        }
    }
}

//! For how long an answer would be kept: the cache's own functions, asked about answers of every kind.

use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, header};

use super::explanation::{Effect, Kept, Lifetime, Setting, Times};
use crate::cache::freshness::{Storable, by_body, by_head, class_settings};
use crate::config::CacheConfig;
use crate::config::cache::SetCookie;
use crate::types::request::CacheClass;
use crate::types::time::Now;
use crate::types::units::Size;

/// What an answer may have that bears on its lifetime.
const FIELDS: [(&str, HeaderName, &str); 11] = [
    ("Set-Cookie", header::SET_COOKIE, "a=b"),
    ("Cache-Control: no-store", CACHE_CONTROL, "no-store"),
    ("Cache-Control: no-cache", CACHE_CONTROL, "no-cache"),
    ("Cache-Control: private", CACHE_CONTROL, "private"),
    ("Cache-Control: max-age=1", CACHE_CONTROL, "max-age=1"),
    ("Cache-Control: must-revalidate", CACHE_CONTROL, "must-revalidate"),
    ("Vary: Cookie", header::VARY, "Cookie"),
    ("Content-Encoding", header::CONTENT_ENCODING, "gzip"),
    (
        "Content-Type: text/event-stream",
        header::CONTENT_TYPE,
        "text/event-stream",
    ),
    ("Content-Range", header::CONTENT_RANGE, "bytes 0-0/2"),
    ("Trailer", header::TRAILER, "x"),
];

/// `unknown`: the route table does not have the path.
pub(super) fn lifetime(
    class: CacheClass,
    unknown: bool,
    config: &CacheConfig,
    origin_of: &dyn Fn(&str) -> String,
    now: Now,
) -> Lifetime {
    let head = |status, fields: &HeaderMap| by_head(class, status, fields, unknown, config, now);
    let plain = plain(class);
    let statuses = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
    let kept: Vec<_> = statuses
        .filter_map(|status| {
            let times = times(&head(status, &plain).ok()?);
            let status = status.as_u16();
            Some(Kept { status, times })
        })
        .collect();

    let of_field = |(has, name, value): (&'static str, HeaderName, &'static str)| {
        let mut fields = plain.clone();
        fields.append(name, HeaderValue::from_static(value));
        effect(has, head(StatusCode::OK, &fields))
    };
    let of_body = |has, body: &[u8]| {
        let stored = head(StatusCode::OK, &plain)
            .and_then(|storable| by_body(class, &plain, body, storable, config, now));
        effect(has, stored)
    };
    let mut answers: Vec<_> = FIELDS.map(of_field).into();
    if class == CacheClass::Origin {
        answers.push(effect(
            "no max-age, s-maxage or Expires",
            head(StatusCode::OK, &HeaderMap::new()),
        ));
    }
    let run = if class == CacheClass::Run {
        r#""id":"1","status":"succeeded","#
    } else {
        ""
    };
    let signed = format!(r#"{{{run}"url":"/f?timestamp={}&sign=x"}}"#, now.unix_seconds());
    answers.push(of_body("a signed file URL made now", signed.as_bytes()));
    if class == CacheClass::Run {
        answers.push(of_body(
            "a run that has not ended",
            br#"{"id":"1","status":"running"}"#,
        ));
    }
    Lifetime {
        kept,
        settings: settings(class, config, origin_of),
        answers,
    }
}

/// The fields of an answer that leaves everything to the class.
fn plain(class: CacheClass) -> HeaderMap {
    let mut fields = HeaderMap::new();
    if class == CacheClass::Origin {
        // Without a lifetime of its own it is not kept; with this one only the limits count.
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=2147483648"));
    }
    fields
}

fn effect(has: &'static str, stored: Result<Storable, &'static str>) -> Effect {
    Effect {
        has,
        not_kept: stored.err(),
        times: stored.ok().as_ref().map(times),
    }
}

fn times(storable: &Storable) -> Times {
    let ms = |duration: Duration| duration.as_millis() as u64;
    Times {
        fresh_ms: ms(storable.ttl),
        stale_while_revalidate_ms: ms(storable.stale_while_revalidate),
        stale_if_error_ms: ms(storable.stale_if_error),
    }
}

/// The configured values that the numbers come from.
fn settings(class: CacheClass, config: &CacheConfig, origin_of: &dyn Fn(&str) -> String) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut add = |key: String, value: String| {
        let from = origin_of(&key);
        all.push(Setting { key, value, from });
    };
    for status in [StatusCode::OK, StatusCode::NOT_FOUND] {
        let Ok(used) = class_settings(class, status, config) else {
            continue;
        };
        let named = config.classes.named();
        for (name, _) in named.iter().filter(|(_, known)| std::ptr::eq(*known, used)) {
            let under = |key: &str| format!("cache.classes.{name}.{key}");
            add(under("ttl"), used.ttl.to_string());
            add(
                under("stale_while_revalidate"),
                used.stale_while_revalidate.to_string(),
            );
            add(under("stale_if_error"), used.stale_if_error.to_string());
            let cookies = match used.set_cookie {
                SetCookie::Refuse => "refuse",
                SetCookie::Strip => "strip",
            };
            add(under("set_cookie"), cookies.into());
        }
    }
    add("cache.ttl_seconds".into(), config.ttl_seconds.to_string());
    add("cache.signed_url_life".into(), config.signed_url_life.to_string());
    let longest = Size(config.local.entry_limit());
    add("cache.local.max_entry_bytes".into(), longest.to_string());
    let ahead = match &config.refresh_ahead {
        None => "off".into(),
        Some(ahead) => format!("in the last {} after {} hits", ahead.last, ahead.min_hits),
    };
    add("cache.refresh_ahead".into(), ahead);
    all
}

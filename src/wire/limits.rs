//! The rules for a request head that HTTP/1 and HTTP/2 share: pure checks, each failing with one clear answer.
//!
//! `screen` applies them to raw HTTP/1 bytes, [`check_h2`] to a head that HPACK has decoded.

use std::ops::Range;

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Uri};

use super::screen::HeadLimits;
use crate::types::{Failure, FailureKind};

/// No method in use is longer.
const METHOD_BYTES: usize = 32;

/// Whether a byte may stand in a method or a field name (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a byte may stand in a field value: visible, blank, tab, or beyond ASCII (RFC 9110 section 5.5).
pub(super) fn is_field_value(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Whether `host` is a name, an IPv4 address or a bracketed IPv6 address, with an optional port.
pub(super) fn is_host(host: &[u8]) -> bool {
    let (name, port) = if host.starts_with(b"[") {
        match host.iter().position(|byte| *byte == b']') {
            Some(end) => host.split_at(end + 1),
            None => return false,
        }
    } else {
        host.split_at(memchr::memchr(b':', host).unwrap_or(host.len()))
    };
    let name_is_good = match name.strip_prefix(b"[") {
        Some(inner) => {
            inner.len() > 2
                && inner[..inner.len() - 1]
                    .iter()
                    .all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte))
        }
        None => {
            !name.is_empty()
                && name
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte))
        }
    };
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name_is_good && port_is_good
}

/// Refuses what is not a method, and the methods that make no sense through this proxy.
pub(super) fn check_method(method: &[u8]) -> Result<(), Failure> {
    match method {
        b"CONNECT" => Err(unsupported("CONNECT is not supported")),
        b"TRACE" => Err(unsupported("TRACE is not supported")),
        _ if method.is_empty() || method.len() > METHOD_BYTES || !method.iter().all(|b| is_token(*b)) => {
            Err(malformed("the method is not a method"))
        }
        _ => Ok(()),
    }
}

/// Refuses a target that is not in origin, absolute or asterisk form (RFC 9112 section 3.2); returns where
/// in it the authority is.
pub(super) fn check_target(method: &[u8], target: &[u8]) -> Result<Option<Range<usize>>, Failure> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_.~%?=&+,:;@!$'()*".contains(byte);
    let wrong = || wrong_target(target);
    if target.first() == Some(&b'/') {
        // What is rarely seen is left to the parser that will read it; a fragment it would cut off.
        let good = target.iter().all(plain)
            || !target.contains(&b'#')
                && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f)
                && Uri::try_from(target).is_ok_and(|uri| uri.authority().is_none());
        return if good { Ok(None) } else { Err(wrong()) };
    }
    if target == b"*" && method == b"OPTIONS" {
        return Ok(None);
    }
    let start = ["http://", "https://"]
        .iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(scheme.as_bytes()))
        })
        .ok_or_else(wrong)?
        .len();
    let length = target[start..]
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(target.len() - start);
    let authority = start..start + length;
    let good =
        !target.contains(&b'#') && is_host(&target[authority.clone()]) && Uri::try_from(target).is_ok();
    if good { Ok(Some(authority)) } else { Err(wrong()) }
}

/// Names the character that a client should have encoded (RFC 3986 section 2), if there is one.
fn wrong_target(target: &[u8]) -> Failure {
    let forbidden = |byte: &&u8| !byte.is_ascii_graphic() || b"\"#<>\\^`{|}".contains(byte);
    match target.iter().find(forbidden) {
        Some(byte) => malformed(format!(
            "the request target is not valid: a character in it has to be written as `%{byte:02X}`"
        )),
        None => malformed("the request target is not valid"),
    }
}

/// A `Content-Length` in plain digits (RFC 9110 section 8.6).
pub(super) fn content_length(value: &[u8]) -> Result<u64, Failure> {
    // Eighteen digits can neither overflow nor be mistaken for a sign.
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(malformed("`Content-Length` is not one plain number"));
    }
    Ok(value
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Checks a head that came over HTTP/2 and gives it the shape that an HTTP/1 head has: target in origin
/// form, one `host` field, one `cookie` field (RFC 9113 sections 8.2.3 and 8.3.1).
pub(super) fn check_h2(parts: &mut Parts, limits: &HeadLimits) -> Result<(), Failure> {
    let target = parts
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if target > limits.target {
        return Err(target_too_long(limits));
    }
    if parts.headers.len() > limits.fields {
        return Err(too_many_fields(limits));
    }
    let section: usize = parts
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if section > limits.section {
        return Err(section_too_long(limits));
    }
    check_method(parts.method.as_str().as_bytes())?;
    for (name, text) in [(&HOST, "Host"), (&CONTENT_LENGTH, "Content-Length")] {
        if parts.headers.get_all(name).iter().nth(1).is_some() {
            return Err(repeated(text));
        }
    }
    if let Some(length) = parts.headers.get(CONTENT_LENGTH) {
        content_length(length.as_bytes())?;
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    match (parts.headers.get(HOST), authority) {
        (None, None) => return Err(malformed("the request needs an `:authority` or a `Host` field")),
        (Some(host), Some(authority)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            return Err(malformed("`Host` differs from `:authority`"));
        }
        (Some(host), _) if !is_host(host.as_bytes()) => {
            return Err(malformed("`Host` is not a host name with an optional port"));
        }
        (Some(_), _) => {}
        (None, Some(authority)) => {
            let host = HeaderValue::from_str(authority).ok();
            let host = host.filter(|host| is_host(host.as_bytes()));
            let host =
                host.ok_or_else(|| malformed("`:authority` is not a host name with an optional port"))?;
            parts.headers.insert(HOST, host);
        }
    }
    let asterisk = parts.method == Method::OPTIONS && parts.uri.path() == "*";
    if !asterisk && !parts.uri.path().starts_with('/') {
        return Err(malformed("the request target is not valid"));
    }
    if parts.headers.get_all(COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<&[u8]> = parts
            .headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            parts.headers.insert(COOKIE, cookie);
        }
    }
    to_origin_form(parts);
    Ok(())
}

/// Leaves path and query of the target; the authority is in `Host`.
pub(super) fn to_origin_form(parts: &mut Parts) {
    if parts.uri.authority().is_some() {
        parts.uri = match parts.uri.path_and_query() {
            Some(target) => Uri::from(target.clone()),
            None => Uri::from_static("/"),
        };
    }
}

/// Refuses trailers that would change how a message is framed or routed (RFC 9110 section 6.5.1).
pub(super) fn check_trailers(trailers: &HeaderMap) -> Result<(), Failure> {
    match [&CONTENT_LENGTH, &TRANSFER_ENCODING, &HOST]
        .iter()
        .find(|name| trailers.contains_key(**name))
    {
        Some(name) => Err(malformed(format!("`{name}` may not stand in a trailer"))),
        None => Ok(()),
    }
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(FailureKind::Malformed, detail)
}

fn unsupported(detail: &'static str) -> Failure {
    Failure::new(FailureKind::UnsupportedMethod, detail)
}

pub(super) fn repeated(name: &str) -> Failure {
    malformed(format!("`{name}` is repeated"))
}

pub(super) fn target_too_long(limits: &HeadLimits) -> Failure {
    Failure::new(
        FailureKind::UriTooLong,
        format!("the request target is longer than {} bytes", limits.target),
    )
}

pub(super) fn section_too_long(limits: &HeadLimits) -> Failure {
    Failure::new(
        FailureKind::HeadersTooLarge,
        format!("the header section is longer than {} bytes", limits.section),
    )
}

pub(super) fn too_many_fields(limits: &HeadLimits) -> Failure {
    Failure::new(
        FailureKind::HeadersTooLarge,
        format!("there are more than {} header fields", limits.fields),
    )
}

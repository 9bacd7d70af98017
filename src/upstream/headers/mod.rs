//! Which fields cross the proxy, and which are its own: pure functions over header maps.
//!
//! Hop-by-hop fields end here in both directions (RFC 9110 section 7.6.1); the fields that name the client
//! are made in `forwarding`. Everything else goes through untouched.

mod forwarding;
#[cfg(test)]
mod tests;

use http::header::{
    self, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Uri, Version, request};

use crate::types::endpoint::Endpoint;
use crate::types::request::Client;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// Fields that `Connection` cannot take away. A client that names them would make the upstream see another
/// request than the one that was classified (RFC 9110 section 7.6.1 forbids naming fields that are meant for
/// all recipients): what says who asks, for what, and how the content is to be read. `x-forwarded-*` is
/// protected as well.
const PROTECTED: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-language",
    "age",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expires",
    "forwarded",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "origin",
    "pragma",
    "range",
    "referer",
    "set-cookie",
    "traceparent",
    "tracestate",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-app-code",
    "x-app-passport",
    "x-csrf-token",
];

/// Removes the fields that `Connection` names and `Connection` itself.
fn remove_nominated(headers: &mut HeaderMap) {
    let nominated: smallvec::SmallVec<[HeaderName; 4]> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !PROTECTED.contains(&name.as_str()) && !name.as_str().starts_with("x-forwarded-"))
        .collect();
    for name in nominated {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
}

fn lists(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        // A parameter (`trailers;q=1`) does not make it another token.
        .filter_map(|item| item.split(|b| *b == b';').next())
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Whether the message asks for its connection to be closed (RFC 9112 section 9.6).
pub(super) fn says_close(headers: &HeaderMap) -> bool {
    lists(headers, &CONNECTION, b"close")
}

/// The protocols that the request wants to switch to. `None` unless `Connection` names `upgrade` (RFC 9110
/// section 7.8), and for `h2c`, which is negotiated per hop and not here.
pub(super) fn upgrade_asked(parts: &request::Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 || !lists(&parts.headers, &CONNECTION, b"upgrade") {
        return None;
    }
    let mut values = parts.headers.get_all(UPGRADE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    (!lists(&parts.headers, &UPGRADE, b"h2c")).then(|| value.clone())
}

/// The fields that go to the upstream. `upgrade` is what [`upgrade_asked`] found, when the exchange may be
/// switched; `authority` is the `Host` of a request that came without one. Over HTTP/2 (`multiplexed`) no field says
/// anything of the connection, but for `TE: trailers` (RFC 9113 section 8.2.2).
pub(super) fn to_upstream(
    parts: &request::Parts,
    client: &Client,
    upgrade: Option<HeaderValue>,
    authority: &str,
    multiplexed: bool,
) -> HeaderMap {
    let mut headers = parts.headers.clone();
    let wants_trailers = lists(&headers, &TE, b"trailers");
    remove_nominated(&mut headers);
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        // Meant for this proxy (RFC 9110 section 11.7.2), which asks for none.
        header::PROXY_AUTHORIZATION,
        // Already answered: whoever reads the client's connection sends 100 (Continue).
        EXPECT,
    ] {
        headers.remove(name);
    }
    // gunicorn, which speaks HTTP/1.1 alone, reads `x_user` and `x-user` as one field and drops or confuses them. gRPC
    // has such names in its metadata.
    let with_underscore: Vec<HeaderName> = headers
        .keys()
        .filter(|name| !multiplexed && name.as_str().contains('_'))
        .cloned()
        .collect();
    for name in with_underscore {
        headers.remove(name);
    }
    join_cookies(&mut headers);
    if !headers.contains_key(HOST) {
        let host = parts.uri.authority().map_or(authority, |a| a.as_str());
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
    }
    forwarding::name_client(&mut headers, client);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if !multiplexed {
            headers.append(CONNECTION, HeaderValue::from_static("TE"));
        }
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.append(VIA, via(parts.version));
    headers
}

/// The target of a request over HTTP/2: what was `Host` is its authority (RFC 9113 section 8.3.1).
pub(super) fn absolute(target: PathAndQuery, headers: &mut HeaderMap, endpoint: &Endpoint) -> Uri {
    let host = headers.remove(HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let own = || Authority::try_from(endpoint.authority()).ok();
    let mut parts = uri::Parts::default();
    parts.scheme = Some(if endpoint.tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = host.or_else(own);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).unwrap_or_default()
}

/// Cleans the fields of an answer in place. After 101 (Switching Protocols) `Upgrade` and its announcement
/// stay.
pub(super) fn from_upstream(headers: &mut HeaderMap, version: Version, switching: bool) {
    let upgrade = headers.get(UPGRADE).cloned().filter(|_| switching);
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    remove_nominated(headers);
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATION_INFO,
        header::PROXY_AUTHENTICATE,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if chunked {
        // RFC 9112 section 6.3: Transfer-Encoding overrides it.
        headers.remove(CONTENT_LENGTH);
    } else if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(first) = headers.get(CONTENT_LENGTH).cloned()
    {
        // They agree, or the answer would not have been accepted.
        headers.insert(CONTENT_LENGTH, first);
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.append(VIA, via(version));
}

/// HTTP/2 may split `Cookie` into several fields; in HTTP/1.1 it is one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(mut joined) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 dify-edge",
        Version::HTTP_2 => "2.0 dify-edge",
        _ => "1.1 dify-edge",
    })
}

//! `X-Forwarded-*` and `Forwarded`: who the client is, said in a way that the upstream can believe.
//!
//! A peer that is not trusted may claim nothing about itself; what it sent is dropped and made anew.

use std::net::IpAddr;

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};

use crate::types::request::Client;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields beside `X-Forwarded-*` in which a client could claim an address or a target. Dify itself believes
/// `CF-Connecting-IP` before anything else.
const CLAIMS: &[&str] = &[
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ipcountry",
    "cf-visitor",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "true-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

fn is_claim(name: &str) -> bool {
    name.starts_with("x-forwarded") || CLAIMS.contains(&name)
}

/// Writes the forwarding fields of a request from `client`.
pub(super) fn name_client(headers: &mut HeaderMap, client: &Client) {
    if !client.trusted {
        let claims: Vec<HeaderName> = headers.keys().filter(|n| is_claim(n.as_str())).cloned().collect();
        for name in claims {
            headers.remove(name);
        }
    }
    let host = headers.get(HOST).cloned();
    let ip = client.ip();
    append_to_list(headers, X_FORWARDED_FOR, &ip.to_string());
    append_to_list(headers, FORWARDED, &forwarded(ip, host.as_ref(), client.scheme()));
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme()));
    }
    if let (Some(host), false) = (host, headers.contains_key(X_FORWARDED_HOST)) {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Appends to a comma-separated field and leaves it one line: not every reader joins lines.
fn append_to_list(headers: &mut HeaderMap, name: HeaderName, item: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

/// One element of `Forwarded` (RFC 7239 section 4).
fn forwarded(ip: IpAddr, host: Option<&HeaderValue>, scheme: &str) -> String {
    let mut element = match ip {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    if let Some(host) = host.and_then(|host| host.to_str().ok()) {
        element.push_str(";host=");
        push_token_or_quoted(&mut element, host);
    }
    element.push_str(";proto=");
    element.push_str(scheme);
    element
}

fn push_token_or_quoted(out: &mut String, value: &str) {
    let is_token_char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !value.is_empty() && value.bytes().all(is_token_char) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

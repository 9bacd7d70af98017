//! The key of a stored answer: a digest of everything that selects it.
//!
//! What Dify lets select an answer without saying so in `Vary` (`Origin`) is part of it, and so is
//! `Accept-Encoding`, so that no second look-up by `Vary` is needed. Raw credentials never get here: the
//! principal is a digest already.

use std::borrow::Cow;

use http::header::{ACCEPT_ENCODING, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use crate::types::ids::Principal;
use crate::types::request::Client;

/// First 128 bits of a blake3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

/// Forwarding fields that the upstream sees as a trusted proxy sent them: they may select an answer (scheme and host
/// of redirects and links). `X-Forwarded-For` and `Forwarded` name the client and are not read by Dify.
pub(crate) fn selects(name: &HeaderName) -> bool {
    name.as_str()
        .strip_prefix("x-forwarded-")
        .is_some_and(|rest| rest != "for")
}

impl Key {
    /// The key of a request asked by `principal`. HEAD shares the key of GET.
    pub fn of(request: &Parts, client: &Client, principal: Principal) -> Self {
        let uri = &request.uri;
        Self::from_parts(client, uri.path(), uri.query(), &request.headers, principal)
    }

    fn from_parts(
        client: &Client,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        principal: Principal,
    ) -> Self {
        let mut digest = Digest(blake3::Hasher::new());
        digest.part(client.scheme().as_bytes());
        digest.field(headers, &HOST);
        digest.part(path.as_bytes());
        match query {
            None => digest.absent(),
            Some(query) => digest.part(canonical_query(query).as_bytes()),
        }
        digest.part(&principal.0);
        digest.field(headers, &ORIGIN);
        digest.field(headers, &ACCEPT_ENCODING);
        if client.trusted {
            for name in headers.keys().filter(|name| selects(name)) {
                digest.part(name.as_str().as_bytes());
                digest.field(headers, name);
            }
        }
        let mut key = [0; 16];
        key.copy_from_slice(&digest.0.finalize().as_bytes()[..16]);
        Self(key)
    }

    /// The first 32 bits in hexadecimal, as `Cache-Status` and logs show it.
    pub fn prefix(&self) -> [u8; 8] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 8];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }
}

/// Every part goes in with its length, so that no two lists of parts give the same input.
struct Digest(blake3::Hasher);

impl Digest {
    fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64 + 1).to_le_bytes());
        self.0.update(bytes);
    }

    fn absent(&mut self) {
        self.0.update(&0_u64.to_le_bytes());
    }

    fn field(&mut self, headers: &HeaderMap, name: &HeaderName) {
        for value in headers.get_all(name) {
            self.part(value.as_bytes());
        }
        self.absent();
    }
}

/// The query with its parameters sorted by name; repeated names keep their order, because most handlers of
/// Dify take the first of repeated values. Names are compared as the server decodes them, otherwise
/// `user=a&%75ser=b` and `%75ser=b&user=a` would share a key.
pub fn canonical_query(query: &str) -> Cow<'_, str> {
    if !query.contains('&') {
        return Cow::Borrowed(query);
    }
    let mut pairs: Vec<(Cow<'_, [u8]>, &str)> =
        query.split('&').map(|pair| (decoded_name(pair), pair)).collect();
    // The server replaces what is not UTF-8, so two such names may be one: leave the order alone.
    let ascii = pairs.iter().all(|(name, _)| name.is_ascii());
    if !ascii || pairs.is_sorted_by(|a, b| a.0 <= b.0) {
        return Cow::Borrowed(query);
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Cow::Owned(pairs.iter().map(|(_, pair)| *pair).collect::<Vec<_>>().join("&"))
}

fn decoded_name(pair: &str) -> Cow<'_, [u8]> {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name).as_bytes();
    if !name.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(name);
    }
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        decoded.push(match (byte, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => byte,
            },
            _ => byte,
        });
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client() -> Client {
        Client {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            trusted: false,
        }
    }

    fn key(path: &str, query: Option<&str>, fields: &[(&'static str, &str)], principal: u8) -> Key {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a field value"));
        }
        Key::from_parts(&client(), path, query, &headers, Principal([principal; 16]))
    }

    #[test]
    fn everything_that_selects_an_answer_changes_the_key() {
        let base = key("/v1/info", Some("a=1"), &[("host", "a")], 1);
        assert_eq!(
            base,
            key("/v1/info", Some("a=1"), &[("host", "a"), ("user-agent", "x")], 1)
        );
        for other in [
            key("/v1/inf", Some("oa=1"), &[("host", "a")], 1),
            key("/v1/info", None, &[("host", "a")], 1),
            key("/v1/info", Some("a=2"), &[("host", "a")], 1),
            key("/v1/info", Some("a=1"), &[("host", "b")], 1),
            key("/v1/info", Some("a=1"), &[("host", "a")], 2),
            key(
                "/v1/info",
                Some("a=1"),
                &[("host", "a"), ("origin", "https://x")],
                1,
            ),
            key("/v1/info", Some("a=1"), &[("host", "a"), ("origin", "null")], 1),
            key(
                "/v1/info",
                Some("a=1"),
                &[("host", "a"), ("accept-encoding", "gzip")],
                1,
            ),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(
            key("/", None, &[], 1),
            key("/", Some(""), &[], 1),
            "no query is not an empty query"
        );
    }

    #[test]
    fn forwarding_fields_count_only_from_a_trusted_peer() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-proto", "https".parse().expect("value"));
        let with = |trusted, headers: &HeaderMap| {
            Key::from_parts(
                &Client { trusted, ..client() },
                "/",
                None,
                headers,
                Principal::PUBLIC,
            )
        };
        assert_eq!(with(false, &headers), with(false, &HeaderMap::new()));
        assert_ne!(with(true, &headers), with(true, &HeaderMap::new()));
        let mut ssl = HeaderMap::new();
        ssl.insert("x-forwarded-ssl", "https".parse().expect("value"));
        assert_ne!(with(true, &headers), with(true, &ssl));
        ssl.insert("x-forwarded-for", "10.0.0.1".parse().expect("value"));
        let one_client = with(true, &ssl);
        ssl.insert("x-forwarded-for", "10.0.0.2".parse().expect("value"));
        assert_eq!(
            one_client,
            with(true, &ssl),
            "clients behind a load balancer share"
        );
    }

    #[test]
    fn different_names_may_change_places_and_repeated_names_may_not() {
        assert_eq!(canonical_query("b=1&a=2"), "a=2&b=1");
        assert_eq!(canonical_query("tag=2&tag=1&a=0"), "a=0&tag=2&tag=1");
        assert_ne!(canonical_query("t=1&t=2"), canonical_query("t=2&t=1"));
        assert_ne!(
            canonical_query("user=a&%75ser=b"),
            canonical_query("%75ser=b&user=a")
        );
        assert_eq!(
            canonical_query("%ff=1&a=2"),
            "%ff=1&a=2",
            "undecodable names keep their places"
        );
    }

    proptest! {
        #[test]
        fn sorting_twice_is_sorting_once(query in "[a-c%7+=&]{0,24}") {
            let once = canonical_query(&query).into_owned();
            let twice = canonical_query(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }

        #[test]
        fn the_values_of_one_name_keep_their_order(query in "([ab]|%61|%62|\\+)=[0-9](&([ab]|%61|%62|\\+)=[0-9]){0,6}") {
            let values = |query: &str, name: &[u8]| -> Vec<String> {
                query.split('&').filter(|p| *decoded_name(p) == *name)
                    .map(|p| p.split_once('=').map(|(_, v)| v.to_owned()).unwrap_or_default()).collect()
            };
            let sorted = canonical_query(&query).into_owned();
            for name in [b"a", b"b", b" "] {
                prop_assert_eq!(values(&query, name), values(&sorted, name));
            }
        }
    }
}

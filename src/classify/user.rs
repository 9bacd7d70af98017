//! The `user` of a request to the service API: whose conversations it reads or changes.
//!
//! A read names it in the query, a write in its JSON body. It only chooses tags; where it cannot be told
//! beyond doubt, a read is not kept and a write ends the conversations of all users.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The `user` of a query as werkzeug decodes it. `None` when there is none, more than one, or one that is
/// not UTF-8.
pub(crate) fn in_query(query: &str) -> Option<Cow<'_, str>> {
    named_in_query(query, "user")
}

/// The same of another parameter.
pub(super) fn named_in_query<'q>(query: &'q str, wanted: &str) -> Option<Cow<'q, str>> {
    let mut found = None;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name).as_deref() == Some(wanted) && found.replace(value).is_some() {
            return None;
        }
    }
    found.and_then(decode).filter(|user| !user.is_empty())
}

/// The `user` of a JSON object. `None` when there is none, it is no text, it stands there twice, or the
/// body is not JSON as this proxy reads it.
pub(crate) fn in_json(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        user: String,
    }
    read_json(body)
        .map(|Named { user }| user)
        .filter(|user| !user.is_empty())
}

/// The `conversation_id` of a JSON object, under the same conditions.
pub(super) fn conversation_in_json(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        conversation_id: String,
    }
    read_json(body)
        .map(|Named { conversation_id }| conversation_id)
        .filter(|id| !id.is_empty())
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    // Serde would take a list for a struct, by the order of its fields.
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Undoes `application/x-www-form-urlencoded` for one name or value; a `%` that begins no escape stays.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let spaced: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    String::from_utf8(unescape(&spaced)).ok().map(Cow::Owned)
}

/// Undoes percent-encoding once; a `%` that begins no escape stays.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|b| (*b as char).to_digit(16));
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high << 4 | low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_user_of_a_query_is_decoded_like_werkzeug_does() {
        assert_eq!(in_query("user=abc").as_deref(), Some("abc"));
        assert_eq!(in_query("limit=1&user=a%20b+c&x").as_deref(), Some("a b c"));
        assert_eq!(in_query("%75ser=abc").as_deref(), Some("abc"));
        assert_eq!(in_query("user=%E4%BD%A0").as_deref(), Some("你"));
        assert_eq!(in_query("user=100%").as_deref(), Some("100%"));
    }

    #[test]
    fn a_user_that_can_be_read_in_two_ways_is_no_user() {
        for query in [
            "",
            "user",
            "user=",
            "user=a&user=a",
            "user=a&%75ser=b",
            "user=%ff",
            "User=a",
            "users=a",
        ] {
            assert_eq!(in_query(query), None, "{query}");
        }
    }

    #[test]
    fn the_user_of_a_body_is_found_beside_anything_else() {
        assert_eq!(
            in_json(br#"{"inputs":{"user":"no"},"user":"abc","query":[1]}"#).as_deref(),
            Some("abc")
        );
        assert_eq!(in_json(br#" {"\u0075ser":"a\u0062c"}"#).as_deref(), Some("abc"));
        for body in [
            &br#"{"user":"a","user":"b"}"#[..],
            br#"{"user":1}"#,
            br#"{"user":null}"#,
            br#"{"user":""}"#,
            br#"{"query":"x"}"#,
            br#"["abc"]"#,
            br#"{"user":"a""#,
            b"{\"user\":\"\xff\"}",
            b"user=abc",
            b"",
        ] {
            assert_eq!(in_json(body), None, "{}", String::from_utf8_lossy(body));
        }
    }

    proptest! {
        #[test]
        fn no_query_and_no_body_makes_it_panic(text in ".{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = in_query(&text);
            let _ = in_json(&bytes);
            let _ = unescape(&bytes);
        }

        #[test]
        fn every_user_survives_encoding(user in "[ -~]{1,20}") {
            let encoded: String = user.bytes().map(|b| format!("%{b:02X}")).collect();
            let query = format!("a=b&user={encoded}");
            prop_assert_eq!(in_query(&query), Some(Cow::Owned(user)));
        }
    }
}

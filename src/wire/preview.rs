//! What this stage makes of a request head that did not come over a connection: for `explain`.
//!
//! The rules are those of `screen` and `service`; only the bytes are written here.

use http::Request;
use http::request::Parts;

use super::screen::check_head;
use super::{limits, service};
use crate::config::LimitsConfig;
use crate::types::{Failure, FailureKind};

/// The head of an HTTP/1.1 request as the next stage would get it.
///
/// # Errors
/// What it would be refused with.
pub fn preview(
    method: &str,
    target: &str,
    fields: &[(String, Vec<u8>)],
    limits: &LimitsConfig,
) -> Result<Parts, Failure> {
    let malformed = |what: &'static str| Failure::new(FailureKind::Malformed, what);
    let mut head = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    for (name, value) in fields {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    if head.iter().filter(|byte| **byte == b'\n').count() != fields.len() + 2 {
        return Err(malformed(
            "a line break stands in the method, the target or a field",
        ));
    }
    check_head(&head, limits)?;
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(name.as_str(), value.trim_ascii());
    }
    let request = request.body(());
    let (mut parts, ()) = request
        .map_err(|_| malformed("the request head is not valid"))?
        .into_parts();
    limits::to_origin_form(&mut parts);
    if !service::asks_for_websocket(&parts.headers) {
        parts.headers.remove(http::header::UPGRADE);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(target: &str, fields: &[(&str, &str)]) -> Result<Parts, Failure> {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
            .collect();
        preview("GET", target, &fields, &LimitsConfig::default())
    }

    #[test]
    fn a_good_head_arrives_in_origin_form() {
        let parts = seen("http://a/v1/info?x=1", &[("Host", "a"), ("Upgrade", "h2c")]).unwrap();
        assert_eq!(parts.uri, "/v1/info?x=1");
        assert_eq!(
            parts.headers.len(),
            1,
            "an upgrade that is not one of WebSocket is ignored"
        );
        let parts = seen("/", &[("host", "a"), ("upgrade", "WebSocket")]).unwrap();
        assert_eq!(parts.headers["upgrade"], "WebSocket");
    }

    #[test]
    fn what_the_wire_refuses_is_refused_in_its_words() {
        let kind = |target: &str, fields: &[(&str, &str)]| seen(target, fields).unwrap_err().kind;
        assert_eq!(kind("/", &[]), FailureKind::Malformed);
        assert_eq!(kind("/a b", &[("host", "a")]), FailureKind::Malformed);
        assert_eq!(
            kind("/", &[("host", "a"), ("x", "1\r\ny: 2")]),
            FailureKind::Malformed
        );
        assert_eq!(
            kind(&format!("/{}", "a".repeat(9000)), &[("host", "a")]),
            FailureKind::UriTooLong
        );
        let many = [("host", "a")]
            .into_iter()
            .chain([("x", "1"); 100])
            .collect::<Vec<_>>();
        assert_eq!(kind("/", &many), FailureKind::HeadersTooLarge);
        let bad = seen("/<", &[("host", "a")]).unwrap_err();
        assert!(bad.detail.contains("%3C"), "{}", bad.detail);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(method in ".{0,8}", target in ".{0,24}", name in ".{0,8}", value in ".{0,8}") {
            let fields = [("host".to_owned(), b"a".to_vec()), (name, value.into_bytes())];
            let _ = preview(&method, &target, &fields, &LimitsConfig::default());
        }
    }
}

//! The reasons of a decision: complete, and of the same rows.

use std::collections::BTreeSet;

use http::{HeaderMap, Request};

use super::coverage::sample;
use super::{UUID, config, credentials, decide, fields};
use crate::classify::row::Methods;
use crate::classify::{ClassifyLayer, Reasons, dify_routes};
use crate::types::request::{CacheClass, ClassifiedRequest};
use crate::types::{Body, FailureKind};

fn preview(line: &str, headers: &HeaderMap, body: &'static str) -> (ClassifiedRequest, Reasons) {
    thread_local! {
        static LAYER: ClassifyLayer = ClassifyLayer::new(&config()).unwrap();
    }
    let (method, target) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(target);
    *request.headers_mut().unwrap() = headers.clone();
    let request = request.body(Body::from(bytes::Bytes::from_static(body.as_bytes())));
    LAYER.with(|layer| {
        let request = layer.preview(request.unwrap()).unwrap();
        let reasons = layer.reasons(&request);
        (request, reasons)
    })
}

/// A request for each row and method, with and without a user in query and body.
fn of_every_row() -> impl Iterator<Item = (String, &'static str)> {
    let methods = [
        ("GET", Methods::GET),
        ("POST", Methods::POST),
        ("PUT", Methods::PUT),
        ("PATCH", Methods::PATCH),
        ("DELETE", Methods::DELETE),
    ];
    dify_routes::all().flat_map(move |row| {
        let has = move |(_, method): &(&str, Methods)| row.methods.meets(*method);
        methods.into_iter().filter(has).flat_map(move |(method, _)| {
            let path = sample(row.template);
            [
                (format!("{method} {path}"), ""),
                (format!("{method} {path}?user=u%201"), r#"{"user":"someone"}"#),
            ]
        })
    })
}

#[test]
fn every_tag_of_every_row_has_its_name() {
    for (line, body) in of_every_row() {
        // A read with a body is never kept, and then carries nothing.
        let body = if line.starts_with("GET") { "" } else { body };
        let (request, reasons) = preview(&line, &credentials(), body);
        let tags = |named: &[super::super::NamedTag]| named.iter().map(|tag| tag.tag()).collect::<Vec<_>>();
        assert_eq!(tags(&reasons.fills), request.decision.fills.to_vec(), "{line}");
        assert_eq!(
            tags(&reasons.invalidates),
            request.decision.invalidates.to_vec(),
            "{line}"
        );
        for named in reasons.fills.iter().chain(&reasons.invalidates) {
            let text = named.to_string();
            assert_eq!(crate::types::ids::Tag::parse(&text), Ok(named.tag()), "{text}");
        }
    }
}

#[test]
fn a_request_is_never_kept_exactly_when_there_is_a_reason() {
    for (line, body) in of_every_row() {
        for headers in [credentials(), HeaderMap::new()] {
            let (request, reasons) = preview(&line, &headers, body);
            let never = request.decision.cache == CacheClass::Never;
            assert_eq!(reasons.never_kept.is_some(), never, "{line}");
            assert_eq!(
                reasons.principal.is_err(),
                request.decision.principal.is_none(),
                "{line}"
            );
        }
    }
}

#[test]
fn the_reason_is_the_first_that_holds() {
    let why = |line: &str, headers: &HeaderMap, body| preview(line, headers, body).1.never_kept;
    let all = credentials();
    assert_eq!(why("GET /v1/info", &all, ""), None);
    for (line, headers, body, word) in [
        ("POST /v1/info", &all, "", "GET and HEAD"),
        ("GET /v1/workflows/tasks/1/stop", &all, "", "this method"),
        ("GET /console/api/login/status-of-nothing", &all, "x", "a body"),
        ("GET /v1/info", &HeaderMap::new(), "", "whose answer"),
        ("GET /v1/conversations?user=a&user=b", &all, "", "one user"),
        (
            "GET /v1/info",
            &fields(&[("upgrade", "websocket"), ("authorization", "x")]),
            "",
            "protocol",
        ),
        ("GET /api/login/status", &all, "", "this route"),
    ] {
        let said = why(line, headers, body).unwrap_or_default();
        assert!(said.contains(word), "{line}: {said}");
    }
}

#[test]
fn the_routes_that_a_write_ends_are_those_whose_answers_carry_its_tags() {
    let reads: Vec<_> = of_every_row()
        .filter(|(line, _)| line.starts_with("GET"))
        .map(|(line, _)| decide(&line))
        .filter(|read| !read.fills.is_empty())
        .collect();
    assert!(reads.len() > 50);
    for (line, _) in of_every_row() {
        // The samples have the same ids and users everywhere.
        let body = r#"{"user":"u 1"}"#;
        let (write, reasons) = preview(&line, &credentials(), body);
        let (_, target) = line.split_once(' ').unwrap();
        let same_path = decide(&format!("GET {target}"));
        let ended: BTreeSet<_> = reads
            .iter()
            .chain((same_path.template != "*").then_some(&same_path))
            .filter(|read| super::ends(&write.decision, read))
            .map(|read| read.template)
            .collect();
        let said: BTreeSet<_> = reasons
            .ends_routes
            .iter()
            .copied()
            .filter(|route| *route != "*")
            .collect();
        assert_eq!(said, ended, "{line}");
    }
}

#[test]
fn what_the_stage_refuses_is_refused() {
    let layer = ClassifyLayer::new(&config()).unwrap();
    let body = Body::from(bytes::Bytes::from(vec![b'x'; (4 << 20) + 1]));
    let request = Request::post("/v1/files/nothing").body(body).unwrap();
    assert!(layer.preview(request).is_ok(), "unknown routes may have more");
    let body = Body::from(bytes::Bytes::from(vec![b'x'; (4 << 20) + 1]));
    let request = Request::post(format!("/v1/messages/{UUID}/feedbacks"))
        .body(body)
        .unwrap();
    assert_eq!(
        layer.preview(request).unwrap_err().kind,
        FailureKind::BodyTooLarge
    );
    let endless = Body::stream(http_body_util::StreamBody::new(futures_util::stream::pending()));
    let request = Request::post("/v1/chat-messages")
        .header("content-length", "9")
        .body(endless)
        .unwrap();
    assert_eq!(
        layer.preview(request).unwrap_err().kind,
        FailureKind::RequestTimeout
    );
}

#[test]
fn a_principal_is_named_by_its_fields() {
    let made = |line: &str, headers: &HeaderMap| preview(line, headers, "").1.principal;
    assert_eq!(made("GET /v1/info", &credentials()), Ok(vec!["authorization"]));
    assert_eq!(
        made("GET /api/site", &credentials()),
        Ok(vec!["authorization", "cookie", "x-app-code", "x-csrf-token"])
    );
    assert_eq!(made("GET /api/system-features", &HeaderMap::new()), Ok(vec![]));
    assert!(
        made("GET /v1/info", &HeaderMap::new())
            .unwrap_err()
            .contains("Authorization")
    );
}

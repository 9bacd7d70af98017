//! Which captured exchange answers a request.
//!
//! Records of the same method and target compete: the credentials must be the same, then most equal fields and the
//! same body win, and equals take turns in the order of the capture. Depends on nothing but the records.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::message::{Request, joined};
use super::record::Record;

/// Who asks: a record with other values answers somebody else.
const CREDENTIALS: [&str; 4] = ["Authorization", "Cookie", "X-App-Code", "X-App-Passport"];
/// What decides about the answer beside them, in the order of the routes that look at them.
const SELECTING: [&str; 11] = [
    "X-CSRF-Token",
    "Origin",
    "Accept-Encoding",
    "Range",
    "If-Range",
    "If-None-Match",
    "If-Modified-Since",
    "Cache-Control",
    "Content-Type",
    "Content-Encoding",
    "Access-Control-Request-Method",
];
/// How much a selecting field counts against one that only happens to be equal.
const SELECTING_WEIGHT: i64 = 100;
/// How much an equal body counts: more than all fields together.
const BODY_WEIGHT: i64 = 1_000_000;
/// How much it counts that both want a stream, or neither does.
const MODE_WEIGHT: i64 = 10_000;

/// A record and what of it a response needs over and over.
#[derive(Debug)]
struct Candidate {
    record: Record,
    body: Vec<u8>,
    turn: AtomicUsize,
}

/// All records, by what they are asked with.
#[derive(Debug)]
pub(super) struct Library {
    candidates: Vec<Candidate>,
    by_target: HashMap<(String, String), Vec<usize>>,
    /// The same without the query, for who asks with a parameter that was not captured.
    by_path: HashMap<(String, String), Vec<usize>>,
}

impl Library {
    pub(super) fn new(records: Vec<Record>) -> Self {
        let mut by_target: HashMap<_, Vec<usize>> = HashMap::new();
        let mut by_path: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, record) in records.iter().enumerate() {
            let target = origin_form(&record.request.path).to_owned();
            let method = record.request.method.clone();
            let path = without_query(&target).to_owned();
            by_path.entry((method.clone(), path)).or_default().push(index);
            by_target.entry((method, target)).or_default().push(index);
        }
        let candidates = records
            .into_iter()
            .map(|record| Candidate {
                body: record
                    .request
                    .body
                    .as_ref()
                    .map(|body| body.bytes())
                    .unwrap_or_default(),
                record,
                turn: AtomicUsize::new(0),
            })
            .collect();
        Self {
            candidates,
            by_target,
            by_path,
        }
    }

    /// Whether any record was asked with the key that `request` carries.
    pub(super) fn knows(&self, request: &Request) -> bool {
        let key = request.field("authorization");
        key.is_some()
            && self
                .candidates
                .iter()
                .any(|candidate| joined(&candidate.record.request.headers, "authorization") == key)
    }

    /// The record that answers `request`, if one does.
    pub(super) fn find(&self, request: &Request) -> Option<&Record> {
        let target = origin_form(&request.target);
        let exact = (request.method.clone(), target.to_owned());
        let roughly = (request.method.clone(), without_query(target).to_owned());
        self.best(self.by_target.get(&exact), request)
            .or_else(|| self.best(self.by_path.get(&roughly), request))
    }

    fn best(&self, among: Option<&Vec<usize>>, request: &Request) -> Option<&Record> {
        let scored: Vec<(i64, &Candidate)> = among?
            .iter()
            .filter_map(|index| self.candidates.get(*index))
            .filter_map(|candidate| Some((score(candidate, request)?, candidate)))
            .collect();
        let best = scored.iter().map(|(score, _)| *score).max()?;
        let equals: Vec<_> = scored.iter().filter(|(score, _)| *score == best).collect();
        let (_, first) = equals.first()?;
        let turn = first.turn.fetch_add(1, Ordering::Relaxed);
        equals
            .get(turn % equals.len())
            .map(|(_, candidate)| &candidate.record)
    }
}

fn without_query(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// How well a record answers a request; nothing when it answers somebody else.
fn score(candidate: &Candidate, request: &Request) -> Option<i64> {
    let captured = &candidate.record.request;
    let equal = |name: &str| joined(&captured.headers, name) == request.field(name);
    if !CREDENTIALS.iter().all(|name| equal(name)) {
        return None;
    }
    let selecting: i64 = SELECTING.iter().map(|name| i64::from(equal(name))).sum();
    let others: i64 = captured
        .headers
        .iter()
        .map(|(name, _)| if equal(name) { 1 } else { -1 })
        .sum();
    let body = i64::from(candidate.body == request.body);
    let streams = |body: &[u8]| memchr::memmem::find(body, b"\"streaming\"").is_some();
    let mode = i64::from(streams(&candidate.body) == streams(&request.body));
    let version = i64::from(captured.http_version == request.version);
    Some(body * BODY_WEIGHT + mode * MODE_WEIGHT + selecting * SELECTING_WEIGHT + others + version)
}

/// A target without the scheme and authority that RFC 9112 section 3.2.2 allows.
fn origin_form(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Framing;
    use super::*;

    #[test]
    fn a_client_library_that_asks_a_little_otherwise_gets_the_page_and_a_stream_when_it_wants_one() {
        let jsonl = include_str!("../exchanges.jsonl");
        let library = Library::new(super::super::records(jsonl, ""));
        let ask = |method: &str, target: &str, body: &str| {
            let request = Request {
                method: method.into(),
                target: target.into(),
                version: "HTTP/1.1".into(),
                fields: vec![(
                    "Authorization".into(),
                    "Bearer app-GHrAtfIBFSM66PQyLXD0FfZE".into(),
                )],
                body: body.into(),
            };
            library.find(&request).map(|record| record.response.framing)
        };
        assert_eq!(
            ask("GET", "/v1/parameters?user=somebody", ""),
            Some(Framing::ContentLength)
        );
        assert_eq!(ask("GET", "/v1/parameters/x", ""), None);
        let chat = |mode: &str| format!("{{\"query\": \"new\", \"response_mode\": \"{mode}\"}}");
        assert_eq!(
            ask("POST", "/v1/chat-messages", &chat("streaming")),
            Some(Framing::Chunked)
        );
        assert_eq!(
            ask("POST", "/v1/chat-messages", &chat("blocking")),
            Some(Framing::ContentLength)
        );
    }

    #[test]
    fn an_absolute_target_is_the_same_as_its_path() {
        assert_eq!(origin_form("http://a:1/v1/info?x"), "/v1/info?x");
        assert_eq!(origin_form("http://a"), "/");
        assert_eq!(origin_form("/v1/info?u=http://a/"), "/v1/info?u=http://a/");
    }
}

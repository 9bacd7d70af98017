//! Every recorded exchange passes through the proxy as it was recorded, first from the origin and then, where the
//! class of the route is kept, from memory.
//!
//! Each record has a proxy of its own, so that none is answered with another's answer; that this cannot happen in one
//! proxy either is a test of its own. What the proxy does differently on purpose is listed with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dify_edge::config::Config;
use dify_edge::config::cache::SetCookie;
use dify_edge::types::time::Clock;
use parking_lot::Mutex;

use crate::support::captures::{self, Record};
use crate::support::client::{Answer, Client};
use crate::support::edge;
use crate::support::origin::{Action, Origin, Script, Seen, chunk, last_chunk};
use crate::support::wire::Fields;
use crate::support::within;

/// What is refused before it reaches the origin, with which status, and why.
const OURS: [(&str, u16, &str); 2] = [
    (
        "conn_te_and_cl",
        400,
        "the length can be read in two ways; the origin would refuse it, too",
    ),
    (
        "conn_no_host",
        400,
        "RFC 9112 section 3.2 asks for 400 without Host; gunicorn is lenient",
    ),
];

/// Fields that each hop makes for itself.
const PER_HOP: [&str; 3] = ["connection", "keep-alive", "transfer-encoding"];
/// Fields that the proxy adds to an answer.
const ADDED: [&str; 3] = ["via", "age", "cache-status"];
/// Request fields that the proxy answers for: they are rebuilt, dropped or used up here.
const REBUILT: [&str; 11] = [
    "connection",
    "transfer-encoding",
    "content-length",
    "expect",
    "host",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
];

/// The answer of a record, as the origin sent it.
pub fn script(record: &Record) -> Script {
    let answer = &record.response;
    let mut head = format!("{} {} {}\r\n", answer.version, answer.status, answer.reason);
    for (name, value) in &answer.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut script = vec![Action::Send(head.into_bytes())];
    match answer.framing.as_str() {
        "content-length" => script.push(Action::Send(answer.body.clone())),
        "none" => {}
        "chunked" => {
            script.extend(answer.chunks.iter().map(chunk));
            script.push(last_chunk());
        }
        "until-close" => script.extend(answer.chunks.iter().cloned().map(Action::Send)),
        // The origin would have gone on for as long as the client stayed.
        "aborted-by-client" => {
            script.extend(answer.chunks.iter().map(chunk));
            script.push(Action::Wait(Arc::default()));
        }
        other => panic!("unknown framing {other}"),
    }
    let closes = crate::support::wire::values(&answer.fields, "connection").contains(&"close");
    if closes {
        script.push(Action::Close);
    }
    script
}

/// Fields as a multiset that can be compared, without those that `left_out` names.
fn multiset(fields: &[(String, String)], left_out: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut all: Vec<_> = fields
        .iter()
        // Blanks around a value are no part of it (RFC 9110 section 5.5).
        .map(|(name, value)| {
            (
                name.to_ascii_lowercase(),
                value.trim_matches([' ', '\t']).to_owned(),
            )
        })
        .filter(|(name, _)| !left_out(name))
        .collect();
    all.sort();
    all
}

/// What an answer has that the record has not, and the other way round.
fn difference(answer: &Answer, record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    let expected = &record.response;
    let mut compare = |what: &str, is: String, was: String| {
        if is != was {
            found.push(format!("{what}: {is} instead of {was}"));
        }
    };
    compare("status", answer.status.to_string(), expected.status.to_string());
    compare("reason", answer.reason.clone(), expected.reason.clone());
    let hit = answer.is_hit();
    // A message without a date gets one from whoever passes it on (RFC 9110 section 6.6.1).
    let dated = expected
        .fields
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("date"));
    let is = multiset(&answer.fields, |name| {
        PER_HOP.contains(&name) || ADDED.contains(&name) || !dated && name == "date"
    });
    let was = multiset(&expected.fields, |name| {
        PER_HOP.contains(&name) || hit && name == "set-cookie"
    });
    compare("fields", format!("{is:?}"), format!("{was:?}"));
    if answer.body != expected.body {
        compare(
            "body",
            answer.text(),
            String::from_utf8_lossy(&expected.body).into_owned(),
        );
    }
    compare("end", format!("{:?}", answer.cut), "None".into());
    compare("Via", answer.fields("via").len().to_string(), "1".into());
    compare(
        "Cache-Status",
        answer.fields("cache-status").len().to_string(),
        "1".into(),
    );
    compare(
        "Age on a hit only",
        answer.field("age").is_some().to_string(),
        hit.to_string(),
    );
    found
}

/// What of the request did not arrive as it was sent.
fn request_difference(seen: &Seen, record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    let target = record
        .target
        .strip_prefix("http://localhost:5001")
        .unwrap_or(&record.target);
    if (seen.method.as_str(), seen.target.as_str()) != (record.method.as_str(), target) {
        found.push(format!("request line: {}", seen.line()));
    }
    let left_out = |name: &str| REBUILT.contains(&name) || name.contains('_');
    let is = multiset(&seen.fields, left_out);
    let was = multiset(&record.fields, left_out);
    if is != was {
        found.push(format!("request fields: {is:?} instead of {was:?}"));
    }
    let at = memchr::memmem::find(&record.request, b"\r\n\r\n").expect("a head") + 4;
    let sent = &record.request[at..];
    let whole = if record.values("transfer-encoding").is_empty() {
        seen.body == sent
    } else {
        // In the recording the content stands with its chunk framing around it.
        !seen.body.is_empty() && memchr::memmem::find(sent, &seen.body).is_some()
    };
    if !whole {
        found.push(format!("request body: {:?}", String::from_utf8_lossy(&seen.body)));
    }
    found
}

/// The time at which a record was made: signed URLs in it are young then.
pub fn clock_of(record: &Record) -> Clock {
    let dates = crate::support::wire::values(&record.response.fields, "date");
    let date = dates.first().copied().unwrap_or("Sun, 22 Nov 2026 16:12:00 GMT");
    Clock::manual(httpdate::parse_http_date(date).expect("a date")).0
}

/// Sends the request of a record as the recorded client did, and leaves as it did.
pub async fn play(client: &mut Client, record: &Record) -> Answer {
    if record.response.framing != "aborted-by-client" {
        return client.exchange(&record.request).await;
    }
    client.send(&record.request).await;
    let (head, interim) = client.final_head().await;
    let mut body = Vec::new();
    while body.len() < record.response.body.len() {
        body.extend(client.chunk().await.expect("a chunk").expect("more chunks"));
    }
    let mut words = head.line.splitn(3, ' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    Answer {
        version: word(),
        status: word().parse().expect("a status"),
        reason: word(),
        fields: head.fields,
        body,
        chunks: Vec::new(),
        trailers: Fields::new(),
        interim,
        cut: None,
    }
}

/// Replays every record of a variant twice; returns the names of those whose second answer was a hit.
async fn replay(variant: &str, change: impl Fn(&mut Config)) -> BTreeSet<String> {
    let current: Arc<Mutex<Option<&'static Record>>> = Arc::default();
    let playing = current.clone();
    let origin = Origin::start(move |_| {
        let record = playing.lock().expect("a record is set");
        async move { script(record) }
    })
    .await;
    let (mut found, mut hits, mut played) = (Vec::new(), BTreeSet::new(), 0);
    for record in captures::all().iter().filter(|record| record.variant == variant) {
        played += 1;
        *current.lock() = Some(record);
        let ours = OURS.iter().find(|(name, ..)| *name == record.name);
        let edge = edge::start_at(&[origin.address], clock_of(record), &change).await;
        let before = origin.counts();
        for round in ["first", "second"] {
            let asked = origin.counts().requests;
            let mut client = edge.client().await;
            let answer = play(&mut client, record).await;
            let arrived = origin.counts().requests - asked;
            let differences = match ours {
                Some((_, status, _)) => {
                    let refused =
                        answer.status == *status && answer.json()["status"] == *status && arrived == 0;
                    (!refused)
                        .then(|| format!("status {}, {arrived} at the origin", answer.status))
                        .into_iter()
                        .collect()
                }
                None => {
                    let mut differences = difference(&answer, record);
                    if arrived != usize::from(!answer.is_hit()) {
                        differences.push(format!("{arrived} requests at the origin"));
                    }
                    if arrived == 1 {
                        let seen = origin.seen().pop().expect("a request");
                        differences.extend(request_difference(&seen, record));
                    }
                    differences
                }
            };
            found.extend(
                differences
                    .into_iter()
                    .map(|difference| format!("{}, {round}: {difference}", record.title())),
            );
            if answer.is_hit() {
                if round == "first" {
                    found.push(format!("{}: a hit at once", record.title()));
                }
                hits.insert(record.name.clone());
            }
            drop(client);
            if record.response.framing == "aborted-by-client" {
                let rounds = if round == "first" { 1 } else { 2 };
                origin
                    .until("the origin to see that the client left", |counts| {
                        counts.left >= before.left + rounds
                    })
                    .await;
            }
        }
        within("the proxy to end", edge.drain(std::time::Duration::ZERO)).await;
    }
    assert!(played > 20, "{variant}: {played} records");
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    hits
}

fn strip_cookies(config: &mut Config) {
    let classes = &mut config.cache.classes;
    for class in [
        &mut classes.metadata,
        &mut classes.listing,
        &mut classes.run,
        &mut classes.origin,
        &mut classes.not_found,
    ] {
        class.set_cookie = SetCookie::Strip;
    }
}

#[tokio::test]
async fn every_recorded_exchange_of_an_upstream_like_dify_passes_unchanged() {
    let hits = replay("upstream_like", |_| {}).await;
    assert_eq!(hits.len(), 109, "{hits:?}");
}

#[tokio::test]
async fn every_recorded_exchange_of_the_fork_passes_unchanged_and_its_cookies_keep_answers_out() {
    let hits = replay("fork", |_| {}).await;
    assert_eq!(hits.len(), 22, "{hits:?}");
    assert!(hits.iter().all(|name| !name.starts_with("v1_")), "{hits:?}");
}

#[tokio::test]
async fn with_cookies_stripped_the_fork_is_answered_from_memory_without_them() {
    let hits = replay("fork", strip_cookies).await;
    assert_eq!(hits.len(), 108, "{hits:?}");
    assert!(hits.contains("v1_info__echo_chat"), "{hits:?}");
}

#[tokio::test]
async fn every_recorded_exchange_with_compression_passes_unchanged() {
    let without = replay("compression_on", |_| {}).await;
    let with = replay("compression_on", strip_cookies).await;
    assert!(without.is_subset(&with));
    assert_eq!((without.len(), with.len()), (2, 20), "{with:?}");
}

/// Paths that Dify answers without looking at who asks.
const PUBLIC: [&str; 6] = [
    "/api/system-features",
    "/api/webapp/access-mode",
    "/console/api/setup",
    "/console/api/system-features",
    "/console/api/version",
    "/console/api/workspaces/current/tool-provider/builtin/",
];

/// Everything in a request that can say who asks.
fn credentials(method: &str, target: &str, fields: &[(String, String)]) -> String {
    let mut all = multiset(fields, |name| {
        !["authorization", "cookie", "x-app-code", "x-app-passport", "x-csrf-token"].contains(&name)
            // The service API looks at the key alone.
            || name == "cookie" && target.starts_with("/v1/")
    });
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Names are asked for in two orders by the same caller: that is one answer.
    let mut pairs: Vec<_> = query.split('&').collect();
    pairs.sort_unstable();
    all.push((format!("{method} {path}"), pairs.join("&")));
    format!("{all:?}")
}

#[tokio::test]
async fn no_answer_is_ever_given_to_other_credentials_than_it_was_made_for() {
    // The origin says to whom it speaks; all requests of all records are in one proxy at once.
    let origin = Origin::start(|seen| async move {
        let whom = credentials(&seen.method, &seen.target, &seen.fields);
        crate::support::origin::json(200, whom)
    })
    .await;
    let edge = edge::start(&[origin.address], strip_cookies).await;
    let asked = || {
        captures::all().iter().filter(|record| {
            record.method == "GET"
                && record.target.starts_with('/')
                && OURS.iter().all(|(name, ..)| *name != record.name)
                && record.fields.iter().all(|(name, _)| !name.contains('_'))
                && record.values("connection").is_empty()
                && !record.request.starts_with(b"GET /health")
        })
    };
    let (mut hits, mut callers) = (0, BTreeMap::<_, BTreeSet<_>>::new());
    for round in 0..2 {
        for record in asked() {
            if PUBLIC.iter().any(|public| record.target.starts_with(public)) {
                continue;
            }
            let whom = credentials(&record.method, &record.target, &record.fields);
            callers.entry(&record.target).or_default().insert(whom.clone());
            let answer = edge.ask(&record.request).await;
            assert_eq!(answer.text(), whom, "{} in round {round}", record.title());
            hits += usize::from(answer.is_hit());
        }
    }
    let shared = callers.values().filter(|whom| whom.len() > 1).count();
    assert!(
        hits > 100 && shared > 10,
        "{hits} hits, {shared} targets with several callers"
    );
}

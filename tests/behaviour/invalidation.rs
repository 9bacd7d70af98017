//! A write through the proxy ends the reads that it changes: the table that was measured on a real Dify.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::client::{Answer, get, request};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, chunk, events, json, last_chunk};

const APP: &str = "5f0e7a3c-0000-4000-8000-00000000000a";
const DATASET: &str = "5f0e7a3c-0000-4000-8000-00000000000d";
const DOCUMENT: &str = "5f0e7a3c-0000-4000-8000-00000000000e";
const THING: &str = "5f0e7a3c-0000-4000-8000-00000000000f";
const USER: &str = "0b7d9a52-6f0e-4c0e-9a3b-0d9f5b0c1a11";

/// The reads that were watched, by the name in the table.
const READS: [(&str, &str); 19] = [
    ("info", "/v1/info"),
    ("parameters", "/v1/parameters"),
    ("meta", "/v1/meta"),
    ("site", "/v1/site"),
    ("conversations", "/v1/conversations?user={user}"),
    ("messages", "/v1/messages?user={user}&conversation_id={thing}"),
    ("annotations", "/v1/apps/annotations"),
    ("feedbacks", "/v1/app/feedbacks"),
    ("logs", "/v1/workflows/logs"),
    ("run", "/v1/workflows/run/{thing}"),
    ("datasets", "/v1/datasets"),
    ("dataset", "/v1/datasets/{dataset}"),
    ("documents", "/v1/datasets/{dataset}/documents"),
    ("document", "/v1/datasets/{dataset}/documents/{document}"),
    ("segments", "/v1/datasets/{dataset}/documents/{document}/segments"),
    ("web site", "/api/site"),
    ("web parameters", "/api/parameters"),
    ("web conversations", "/api/conversations"),
    ("web messages", "/api/messages?conversation_id={thing}"),
];

/// Every read that a key or an app switch decides about.
const KEYED: &str = "info parameters meta site conversations messages annotations feedbacks";

/// A write, the reads that change with it, and some that must not miss for it.
struct Row {
    method: &'static str,
    target: &'static str,
    body: &'static str,
    changes: &'static [&'static str],
    leaves: &'static [&'static str],
}

const fn row(
    method: &'static str,
    target: &'static str,
    body: &'static str,
    changes: &'static [&'static str],
    leaves: &'static [&'static str],
) -> Row {
    Row {
        method,
        target,
        body,
        changes,
        leaves,
    }
}

const CHAT: &str = r#"{"inputs": {}, "query": "hi", "response_mode": "blocking", "user": "{user}"}"#;
const ALL_OF_KEY: &[&str] = &[
    "info",
    "parameters",
    "meta",
    "site",
    "conversations",
    "messages",
    "annotations",
    "feedbacks",
];

const TABLE: [Row; 20] = [
    row(
        "PUT",
        "/console/api/apps/{app}",
        "{}",
        &["info"],
        &["conversations", "logs", "run"],
    ),
    row(
        "POST",
        "/console/api/apps/{app}/site",
        "{}",
        &["site", "web site"],
        &["conversations", "logs"],
    ),
    row(
        "POST",
        "/console/api/apps/{app}/workflows/publish",
        "{}",
        &["parameters", "web parameters"],
        &["logs", "conversations"],
    ),
    row(
        "POST",
        "/console/api/apps/{app}/api-enable",
        "{\"enable_api\": false}",
        ALL_OF_KEY,
        &[],
    ),
    row(
        "POST",
        "/console/api/apps/{app}/site-enable",
        "{\"enable_site\": false}",
        &["web site", "web parameters", "web conversations"],
        &[],
    ),
    row(
        "POST",
        "/v1/chat-messages",
        CHAT,
        &["conversations", "messages"],
        &["info", "parameters", "datasets", "run"],
    ),
    row(
        "POST",
        "/v1/messages/{thing}/feedbacks",
        "{\"rating\": \"like\", \"user\": \"{user}\"}",
        &["messages", "feedbacks"],
        &["info", "datasets"],
    ),
    row(
        "POST",
        "/v1/conversations/{thing}/name",
        "{\"name\": \"new\", \"user\": \"{user}\"}",
        &["conversations"],
        &["info", "parameters", "datasets"],
    ),
    row(
        "DELETE",
        "/v1/conversations/{thing}",
        "{\"user\": \"{user}\"}",
        &["conversations", "messages"],
        &["info", "datasets"],
    ),
    row(
        "POST",
        "/v1/workflows/run",
        "{\"inputs\": {}, \"response_mode\": \"blocking\", \"user\": \"{user}\"}",
        &["logs"],
        &["info", "datasets", "run"],
    ),
    row(
        "PATCH",
        "/v1/datasets/{dataset}",
        "{}",
        &["datasets", "dataset"],
        &["info", "conversations"],
    ),
    row(
        "POST",
        "/v1/datasets/{dataset}/retrieve",
        "{\"query\": \"x\"}",
        &[],
        &["datasets", "dataset", "documents", "info"],
    ),
    row(
        "POST",
        "/v1/datasets/{dataset}/document/create-by-text",
        "{}",
        &["datasets", "dataset", "documents"],
        &["info"],
    ),
    row(
        "POST",
        "/v1/datasets/{dataset}/documents/{document}/segments",
        "{}",
        &["datasets", "dataset", "documents", "document", "segments"],
        &["info"],
    ),
    row(
        "DELETE",
        "/v1/datasets/{dataset}/documents/{document}",
        "",
        &["datasets", "dataset", "documents", "document", "segments"],
        &["info"],
    ),
    row(
        "POST",
        "/api/chat-messages",
        CHAT,
        &["web conversations"],
        &["info", "datasets", "web site"],
    ),
    row(
        "POST",
        "/console/api/account/name",
        "{\"name\": \"new\"}",
        &["info", "logs", "datasets", "dataset"],
        &["run"],
    ),
    row(
        "DELETE",
        "/console/api/apps/{app}/api-keys/{thing}",
        "",
        ALL_OF_KEY,
        &[],
    ),
    row("DELETE", "/console/api/apps/{app}", "", ALL_OF_KEY, &[]),
    row(
        "POST",
        "/v1/apps/annotations",
        "{\"question\": \"q\", \"answer\": \"a\"}",
        &["annotations"],
        &["info", "datasets"],
    ),
];

fn filled(text: &str) -> String {
    text.replace("{app}", APP)
        .replace("{dataset}", DATASET)
        .replace("{document}", DOCUMENT)
        .replace("{thing}", THING)
        .replace("{user}", USER)
}

/// The fields of whoever asks for this target.
fn credentials(target: &str) -> &'static [(&'static str, &'static str)] {
    match target {
        _ if target.starts_with("/api/") => &[("X-App-Code", "code"), ("X-App-Passport", "passport")],
        _ if target.starts_with("/console/") => {
            &[("Cookie", "access_token=a; csrf_token=b"), ("X-CSRF-Token", "b")]
        }
        _ => &[("Authorization", "Bearer app-1")],
    }
}

async fn read(edge: &Running, name: &str) -> Answer {
    let (_, target) = READS.iter().find(|(known, _)| *known == name).expect("a read");
    let target = filled(target);
    edge.ask(get(&target, credentials(&target))).await
}

/// Reads until it is a hit: the second time.
async fn prime(edge: &Running, names: &[&str]) {
    for name in names {
        read(edge, name).await;
        let again = read(edge, name).await;
        assert!(again.is_hit(), "{name} is not kept: {}", again.cache_status());
    }
}

fn write(row: &Row) -> Vec<u8> {
    let target = filled(row.target);
    let mut fields = credentials(&target).to_vec();
    if !row.body.is_empty() {
        fields.push(("Content-Type", "application/json"));
    }
    request(row.method, &target, &fields, filled(row.body).as_bytes())
}

/// An ended run for the run's detail, which is not kept otherwise.
fn content(target: &str) -> String {
    if target.starts_with("/v1/workflows/run/") {
        format!("{{\"id\": \"{THING}\", \"status\": \"succeeded\"}}")
    } else {
        "{}".into()
    }
}

/// Before an origin that answers writes with `status`; the lists live long enough not to end by age.
async fn before(status: u16) -> (Origin, Running) {
    let origin = answering_writes(move || json(status, "{}")).await;
    let edge = edge::start(&[origin.address], |config| {
        config.cache.classes.listing.ttl = dify_edge::types::units::Span::secs(600);
        // Whether a read is kept again at once is looked at; `background` looks at the window.
        config.cache.unsettled_window = dify_edge::types::units::Span::secs(0);
    })
    .await;
    (origin, edge)
}

/// An origin that answers reads at once and plays `script` for every write.
async fn answering_writes(script: impl Fn() -> Vec<Action> + Send + Sync + 'static) -> Origin {
    Origin::start(move |seen| {
        let actions = match seen.method.as_str() {
            "GET" => json(200, content(&seen.target)),
            _ => script(),
        };
        async move { actions }
    })
    .await
}

async fn start(origin: &Origin) -> Running {
    edge::start(&[origin.address], |config| {
        config.cache.classes.listing.ttl = dify_edge::types::units::Span::secs(600);
    })
    .await
}

async fn check(edge: &Running, row: &Row, status: u16) {
    let what = format!("{} {}", row.method, row.target);
    prime(edge, row.changes).await;
    prime(edge, row.leaves).await;
    let answer = edge.ask(write(row)).await;
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    for name in row.leaves {
        assert!(read(edge, name).await.is_hit(), "{what} ends {name}");
    }
    for name in row.changes {
        let after = read(edge, name).await;
        assert!(!after.is_hit(), "{what} leaves {name}: {}", after.cache_status());
        assert!(
            read(edge, name).await.is_hit(),
            "{name} is not kept again after {what}"
        );
    }
}

#[tokio::test]
async fn every_write_of_the_measured_table_ends_the_reads_that_it_changes_and_spares_others() {
    for row in &TABLE {
        let (_origin, edge) = before(200).await;
        check(&edge, row, 200).await;
    }
}

#[tokio::test]
async fn a_write_that_is_answered_with_an_error_may_have_happened_and_ends_the_same_reads() {
    for status in [400, 500] {
        for row in &TABLE {
            let (_origin, edge) = before(status).await;
            check(&edge, row, status).await;
        }
    }
}

#[tokio::test]
async fn deleting_a_key_ends_at_once_everything_that_was_kept_for_any_key() {
    let (_origin, edge) = before(204).await;
    let names: Vec<&str> = READS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| KEYED.contains(name) || name.starts_with("dataset"))
        .collect();
    prime(&edge, &names).await;
    let delete = format!("/console/api/apps/{APP}/api-keys/{THING}");
    let answer = edge
        .ask(request("DELETE", &delete, credentials(&delete), b""))
        .await;
    assert_eq!(answer.status, 204);
    for name in names {
        assert!(!read(&edge, name).await.is_hit(), "{name} outlives the key");
    }
}

#[tokio::test]
async fn a_write_whose_client_leaves_before_the_answer_ends_the_reads_all_the_same() {
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    let origin = answering_writes(move || {
        let mut script = vec![Action::Wait(held.clone())];
        script.extend(json(200, "{}"));
        script
    })
    .await;
    let edge = start(&origin).await;
    prime(&edge, &["info", "logs"]).await;
    let before = origin.counts().requests;
    let mut client = edge.client().await;
    client.send(write(&TABLE[0])).await;
    origin
        .until("the write at the origin", |counts| counts.requests > before)
        .await;
    drop(client);
    origin
        .until("the proxy to give it up", |counts| counts.left == 1)
        .await;
    let after = read(&edge, "info").await;
    assert!(!after.is_hit(), "{}", after.cache_status());
    assert!(read(&edge, "logs").await.is_hit());
    // It may still be at work: what is read meanwhile is not kept for good.
    let soon = read(&edge, "info").await;
    assert!(!soon.is_hit(), "{}", soon.cache_status());
}

#[tokio::test]
async fn a_write_whose_upstream_breaks_off_ends_the_reads_all_the_same() {
    let origin = answering_writes(|| vec![Action::Abort]).await;
    let edge = start(&origin).await;
    prime(&edge, &["info"]).await;
    let answer = edge.ask(write(&TABLE[0])).await;
    assert_eq!(answer.status, 502);
    assert!(!read(&edge, "info").await.is_hit());
}

#[tokio::test]
async fn a_streamed_generation_ends_reads_when_it_begins_and_when_it_is_over() {
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    let origin = answering_writes(move || {
        vec![
            events(),
            chunk("data: {\"event\": \"message\"}\n\n"),
            Action::Wait(held.clone()),
            chunk("data: {\"event\": \"message_end\"}\n\n"),
            last_chunk(),
        ]
    })
    .await;
    let edge = start(&origin).await;
    prime(&edge, &["messages", "info"]).await;
    let chat = TABLE.iter().find(|row| row.body == CHAT).expect("a chat");
    let mut client = edge.client().await;
    client.send(write(chat)).await;
    client.final_head().await;
    client.chunk().await.expect("a chunk");
    // The row is there with an empty answer, and is filled at the end.
    assert!(!read(&edge, "messages").await.is_hit());
    gate.notify_one();
    while client.chunk().await.expect("a chunk").is_some() {}
    assert!(
        !read(&edge, "messages").await.is_hit(),
        "read during the stream, served after it"
    );
    assert!(read(&edge, "messages").await.is_hit());
    assert!(read(&edge, "info").await.is_hit());
}

#[tokio::test]
async fn a_read_that_began_before_a_write_is_not_served_after_it() {
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        let held = held.clone();
        async move {
            if seen.method != "GET" {
                return json(200, "{}");
            }
            let mut script = Vec::new();
            if seen.field("x-slow").is_some() {
                script.push(Action::Wait(held));
            }
            script.extend(json(200, "{}"));
            script
        }
    })
    .await;
    let edge = start(&origin).await;
    let mut slow = edge.client().await;
    slow.send(get(
        "/v1/info",
        &[("Authorization", "Bearer app-1"), ("X-Slow", "1")],
    ))
    .await;
    origin
        .until("the read at the origin", |counts| counts.requests == 1)
        .await;
    edge.ask(write(&TABLE[0])).await;
    gate.notify_one();
    assert_eq!(slow.response("GET").await.status, 200);
    assert!(!read(&edge, "info").await.is_hit());
}

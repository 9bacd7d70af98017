//! Purges through the administrative listener: what is ended, what is spared, and what is then served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dify_edge::classify::Classifier;
use dify_edge::config::{AccessLog, Config, Token};
use dify_edge::types::units::Span;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;
use tokio::sync::Notify;

use crate::support::client::{Answer, Client, get, post};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, json};
use crate::support::{child, eventually};

/// What writes must carry here.
pub const TOKEN: &str = "a-token-for-behaviour-tests";

/// Reads that are stored: who asks, and for what.
pub const READS: [(&str, &str); 5] = [
    ("app-1", "/v1/info"),
    ("app-2", "/v1/info"),
    ("app-1", "/v1/parameters"),
    (
        "app-1",
        "/v1/datasets/5f0e7a3c-0000-4000-8000-00000000000d/documents",
    ),
    (
        "app-1",
        "/v1/datasets/5f0e7a3c-0000-4000-8000-00000000000e/documents",
    ),
];

fn with_token(config: &mut Config) {
    config.admin.token = Some(Token(TOKEN.into()));
    // Long enough not to end by age.
    config.cache.classes.listing.ttl = Span::secs(600);
    config.cache.classes.listing.stale_while_revalidate = Span::secs(600);
}

/// Before an origin whose answers are numbered.
pub async fn start() -> (Origin, Running) {
    let number = AtomicUsize::new(0);
    let origin = Origin::start(move |_| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        async move { json(200, format!("{{\"number\": {number}}}")) }
    })
    .await;
    let edge = edge::start(&[origin.address], with_token).await;
    (origin, edge)
}

pub async fn read(edge: &Running, (who, target): (&str, &str)) -> Answer {
    edge.ask(get(target, &[("Authorization", &format!("Bearer {who}"))]))
        .await
}

fn purging(body: &str) -> Vec<u8> {
    let bearer = format!("Bearer {TOKEN}");
    post("/cache/purge", &[("Authorization", &bearer)], body)
}

/// Purges; how many entries it says.
async fn purge(edge: &Running, body: &Value) -> u64 {
    let answer = Client::connect(edge.admin)
        .await
        .exchange(purging(&body.to_string()))
        .await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    let json = answer.json();
    assert_eq!(
        json["soft"],
        body.get("soft").is_some_and(|soft| *soft == true),
        "{body}"
    );
    json["entries"].as_u64().expect("a number")
}

async fn look(edge: &Running, target: &str) -> Answer {
    Client::connect(edge.admin).await.exchange(get(target, &[])).await
}

pub fn key_of(answer: &Answer) -> String {
    let (_, rest) = answer.cache_status().split_once("key=\"").expect("a key");
    rest[..8].to_owned()
}

/// The digest of whoever asks with this key.
fn principal(who: &str) -> String {
    let classifier =
        Classifier::new(&edge::config(&["127.0.0.1:1".parse().expect("an address")])).expect("routes");
    let value = HeaderValue::try_from(format!("Bearer {who}")).expect("a value");
    let headers: HeaderMap = [(http::header::AUTHORIZATION, value)].into_iter().collect();
    let decision = classifier.decide(&Method::GET, "/v1/info", None, &headers);
    let principal = decision.expect("a route").principal.expect("a caller");
    principal.to_hex()
}

/// Every way to select, with the places in [`READS`] of what it means.
pub fn selections(first_key: &str) -> Vec<(Value, Vec<usize>)> {
    let object = |name: &str, value: Value| Value::Object([(name.to_owned(), value)].into_iter().collect());
    let id = "5F0E7A3C-0000-4000-8000-00000000000D";
    vec![
        (object("key", first_key.into()), vec![0]),
        (object("key", first_key.to_uppercase().into()), vec![0]),
        (object("tag", format!("datasets:{id}").into()), vec![3]),
        (object("tag", "datasets".into()), vec![3, 4]),
        (object("tag", "access".into()), vec![0, 1, 2, 3, 4]),
        (object("tag", "files".into()), vec![]),
        (object("route", "/v1/info".into()), vec![0, 1]),
        (object("route", "*".into()), vec![]),
        (object("principal", principal("app-1").into()), vec![0, 2, 3, 4]),
        (object("principal", principal("app-2").into()), vec![1]),
        (object("principal", principal("app-3").into()), vec![]),
        (object("all", true.into()), vec![0, 1, 2, 3, 4]),
    ]
}

/// Reads everything until it is stored; the key of the first.
pub async fn prime(edge: &Running) -> String {
    for what in READS {
        eventually("a fresh answer in memory", || async {
            let answer = read(edge, what).await;
            (answer.is_hit() && !answer.cache_status().contains("stale")).then_some(())
        })
        .await;
    }
    key_of(&read(edge, READS[0]).await)
}

#[tokio::test]
async fn a_hard_purge_ends_exactly_what_is_selected() {
    let (_origin, edge) = start().await;
    let key = prime(&edge).await;
    for (body, meant) in selections(&key) {
        prime(&edge).await;
        assert_eq!(purge(&edge, &body).await, meant.len() as u64, "{body}");
        for (place, what) in READS.iter().enumerate() {
            let answer = read(&edge, *what).await;
            assert_eq!(
                answer.is_hit(),
                !meant.contains(&place),
                "{body} {what:?} {}",
                answer.cache_status()
            );
        }
    }
}

#[tokio::test]
async fn a_soft_purge_makes_exactly_what_is_selected_stale() {
    let (_origin, edge) = start().await;
    let key = prime(&edge).await;
    for (mut body, meant) in selections(&key) {
        prime(&edge).await;
        body["soft"] = true.into();
        assert_eq!(purge(&edge, &body).await, meant.len() as u64, "{body}");
        for (place, what) in READS.iter().enumerate() {
            let answer = read(&edge, *what).await;
            assert!(answer.is_hit(), "{body} {what:?} {}", answer.cache_status());
            let stale = answer.cache_status().contains("; detail=stale-while-revalidate");
            assert_eq!(
                stale,
                meant.contains(&place),
                "{body} {what:?} {}",
                answer.cache_status()
            );
        }
    }
}

#[tokio::test]
async fn what_was_purged_softly_is_given_once_more_while_it_is_fetched_anew() {
    let (origin, edge) = start().await;
    let info = READS[0];
    read(&edge, info).await;
    let key = key_of(&read(&edge, info).await);
    let entry = format!("/cache/entry?key={key}");
    let fresh = look(&edge, &entry).await.json();
    assert_eq!(fresh.as_array().map(Vec::len), Some(1), "{fresh}");
    assert_eq!(
        (&fresh[0]["state"], &fresh[0]["route"]),
        (&"fresh".into(), &"/v1/info".into())
    );
    let whole = fresh[0]["key"].as_str().expect("a key");
    assert!(whole.len() == 32 && whole.starts_with(&key), "{whole}");

    assert_eq!(
        purge(&edge, &serde_json::json!({ "key": whole, "soft": true })).await,
        1
    );
    let stale = look(&edge, &format!("/cache/entry?key={whole}")).await.json();
    assert_eq!(stale[0]["state"], "stale-while-revalidate");
    assert_eq!(origin.counts().requests, 1, "a purge fetches nothing by itself");

    let answer = read(&edge, info).await;
    assert_eq!(answer.json()["number"], 0);
    let status = answer.cache_status();
    assert!(status.starts_with("dify-edge; hit; ttl="), "{status}");
    assert!(status.ends_with("; detail=stale-while-revalidate"), "{status}");
    origin
        .until("the fetch in the background", |counts| counts.requests == 2)
        .await;
    let again = eventually("the new answer", || async {
        let answer = read(&edge, info).await;
        (!answer.cache_status().contains("stale")).then_some(answer)
    })
    .await;
    assert!(again.is_hit(), "{}", again.cache_status());
    assert_eq!(again.json()["number"], 1);
    assert_eq!(origin.counts().requests, 2);
    assert_eq!(look(&edge, &entry).await.json()[0]["state"], "fresh");

    assert_eq!(purge(&edge, &serde_json::json!({ "all": true })).await, 1);
    let gone = look(&edge, &entry).await;
    assert_eq!((gone.status, &gone.json()["code"]), (404, &"not_found".into()));
    let stats = look(&edge, "/cache/stats").await.json();
    for (name, number) in [
        ("purges", 2),
        ("stale_while_revalidate", 1),
        ("refreshed", 1),
        ("entries", 0),
    ] {
        assert_eq!(stats[name], number, "{name}: {stats}");
    }
}

#[tokio::test]
async fn an_answer_that_was_being_fetched_during_a_purge_is_not_kept() {
    let gate = Arc::new(Notify::new());
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        let mut script = vec![Action::Wait(held.clone())];
        script.extend(json(200, "{}"));
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], with_token).await;
    for body in [
        serde_json::json!({ "route": "/v1/info" }),
        serde_json::json!({ "all": true }),
    ] {
        let before = origin.counts().requests;
        let mut client = edge.client().await;
        client
            .send(get("/v1/info", &[("Authorization", "Bearer app-1")]))
            .await;
        origin.until("the fetch", |counts| counts.requests > before).await;
        assert_eq!(purge(&edge, &body).await, 0);
        gate.notify_one();
        let answer = client.response("GET").await;
        assert_eq!(answer.status, 200);
        gate.notify_one();
        let after = read(&edge, READS[0]).await;
        assert!(!after.is_hit(), "{body}: {}", after.cache_status());
        assert_eq!(purge(&edge, &serde_json::json!({ "all": true })).await, 1);
    }
}

#[tokio::test]
async fn a_purge_is_one_line_of_the_log_without_credentials() {
    let origin = Origin::start(|_| async { json(200, "{}") }).await;
    let mut config = edge::config(&[origin.address]);
    with_token(&mut config);
    config.admin.address = "0.0.0.0:0".parse().expect("an address");
    let served = child::serve(config, AccessLog::Off).await;
    let digest = principal("app-1");
    for body in [
        serde_json::json!({ "principal": digest, "soft": true }),
        serde_json::json!({ "tag": "target:/a\nb" }),
    ] {
        let answer = Client::connect(served.admin)
            .await
            .exchange(purging(&body.to_string()))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let wrong = post(
        "/cache/purge",
        &[("Authorization", "Bearer hunter2hunter2hunter2")],
        "{}",
    );
    assert_eq!(
        Client::connect(served.admin).await.exchange(wrong).await.status,
        401
    );
    served.signal("TERM");
    let log = served.end().await.1;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let purged: Vec<_> = lines.iter().filter(|line| line["message"] == "purged").collect();
    assert_eq!(purged.len(), 2, "{log}");
    assert_eq!(purged[0]["what"], format!("principal {}", &digest[..8]));
    assert_eq!(
        (&purged[0]["soft"], &purged[0]["entries"]),
        (&true.into(), &0.into())
    );
    assert_eq!(purged[1]["what"], "tag target:/a\nb");
    for secret in [TOKEN, "hunter2", &digest] {
        assert!(!log.contains(secret), "{log}");
    }
    let warned = |line: &Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.contains("admin.address: 0.0.0.0:0 is not a loopback address")
    };
    assert!(lines.iter().any(warned), "{log}");
}

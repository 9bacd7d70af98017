//! What does not exist never reaches the origin, and what exists is never refused.
//!
//! Against a real database and an origin that speaks as Dify does. The database is looked at every 100 ms here.

use std::collections::HashSet;
use std::sync::Arc;

use dify_edge::config::guard::{GuardConfig, GuardMode, LearnedConfig, PostgresConfig, SourceConfig};
use dify_edge::types::units::Span;
use parking_lot::Mutex;

use crate::support::client::{Answer, get, post};
use crate::support::edge::{self, Running};
use crate::support::known::{insert, insert_key, uuid};
use crate::support::metrics;
use crate::support::origin::{Origin, Script, Seen, answer};
use crate::support::postgres::Postgres;
use crate::support::{at_last, eventually};

const KEY: &str = "app-0123456789abcdefghijklmn";
const DATASETS: &str = "dataset-0123456789abcdefghijklmn";
const BAD_KEY: &str =
    "{\"code\": \"unauthorized\", \"message\": \"Access token is invalid\", \"status\": 401}\n";
const NO_DATASET: &str = "{\"code\": \"not_found\", \"message\": \"Dataset not found.\", \"status\": 404}\n";
const NO_ROUTE: &str = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>The requested URL was \
     not found on the server. If you entered the URL manually please check your spelling and try again.</p>\n";

/// Dify, as far as these tests go: keys and data sets that exist.
#[derive(Clone, Default)]
struct Dify(Arc<Mutex<HashSet<String>>>);

impl Dify {
    fn with(things: &[&str]) -> Self {
        Self(Arc::new(Mutex::new(
            things.iter().map(ToString::to_string).collect(),
        )))
    }

    fn has(&self, thing: &str) -> bool {
        self.0.lock().contains(thing)
    }

    fn answer(&self, seen: &Seen) -> Script {
        let said = |status: u16, body: &str| {
            let mut fields = vec![
                ("Content-Type", "application/json"),
                ("Access-Control-Allow-Origin", "*"),
                ("Access-Control-Expose-Headers", "X-Env, X-Trace-Id, X-Version"),
                ("X-Version", "1.12.1"),
                ("X-Env", "PRODUCTION"),
            ];
            if status == 401 {
                fields.insert(1, ("WWW-Authenticate", "Bearer realm=\"api\""));
            }
            answer(status, &fields, body)
        };
        if seen.method == "POST" && seen.target.ends_with("/api-keys") {
            let key = "app-abcdefghijklmnopqrstuvwx";
            self.0.lock().insert(key.into());
            return said(
                201,
                &format!(
                    "{{\"id\": \"{}\", \"type\": \"app\", \"token\": \"{key}\"}}",
                    uuid(99).0
                ),
            );
        }
        let dataset = seen
            .target
            .strip_prefix("/v1/datasets/")
            .and_then(|rest| rest.get(..36));
        if seen.target == "/v1/datasets/not-a-uuid" {
            let html = [
                ("Content-Type", "text/html; charset=utf-8"),
                ("X-Version", "1.12.1"),
                ("X-Env", "PRODUCTION"),
            ];
            return answer(404, &html, NO_ROUTE);
        }
        if let Some(id) = dataset
            && !self.has(id)
        {
            return said(404, NO_DATASET);
        }
        let key = seen
            .field("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            Some(key) if self.has(key) => said(200, "{\"name\": \"it\"}"),
            _ => said(401, BAD_KEY),
        }
    }

    async fn start(&self) -> Origin {
        let dify = self.clone();
        Origin::start(move |seen| {
            let script = dify.answer(&seen);
            async move { script }
        })
        .await
    }
}

fn guard(mode: GuardMode, url: Option<String>) -> GuardConfig {
    let source = match url {
        None => SourceConfig::Learned(LearnedConfig {}),
        Some(url) => SourceConfig::Postgres(PostgresConfig {
            url: Some(url),
            refresh: Span::millis(100),
            ..PostgresConfig::default()
        }),
    };
    GuardConfig {
        mode,
        sources: vec![source],
        ..GuardConfig::default()
    }
}

async fn guarded(origin: &Origin, guard: GuardConfig) -> Running {
    edge::start(&[origin.address], |config| config.guard = Some(guard)).await
}

/// Waits until all of the kind is known.
async fn armed(edge: &Running, kind: &str) {
    at_last("all of a kind to be known", || async {
        let ready = metrics::ask(edge.admin, "/ready").await.json();
        let kinds = ready["guard"]["kinds"].as_array().cloned().unwrap_or_default();
        let armed = kinds
            .iter()
            .any(|known| known["kind"] == kind && known["armed"] == true);
        armed.then_some(())
    })
    .await;
}

async fn read(edge: &Running, key: &str, target: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    edge.ask(get(target, &[("Authorization", &bearer)])).await
}

async fn counted(edge: &Running, name: &str) -> f64 {
    metrics::sum(edge.admin, name, &[]).await
}

/// A database with both keys and one data set, an origin with the same, and the proxy between.
async fn all(mode: GuardMode) -> (Postgres, Dify, Origin, Running) {
    all_with(|guard| guard.mode = mode).await
}

async fn all_with(change: impl FnOnce(&mut GuardConfig)) -> (Postgres, Dify, Origin, Running) {
    let server = Postgres::start().await;
    insert_key(&server, KEY).await;
    insert_key(&server, DATASETS).await;
    insert(&server, "datasets", 1, "1 hour").await;
    let dify = Dify::with(&[KEY, DATASETS, &uuid(1).0]);
    let origin = dify.start().await;
    let mut settings = guard(GuardMode::Enforce, Some(server.owner_url()));
    change(&mut settings);
    let edge = guarded(&origin, settings).await;
    for kind in ["app_key", "dataset_key", "dataset"] {
        armed(&edge, kind).await;
    }
    // What all of Dify's answers carry is seen in the first.
    assert_eq!(read(&edge, KEY, "/v1/info").await.status, 200);
    (server, dify, origin, edge)
}

fn without_date(answer: &Answer) -> Vec<String> {
    let own = [
        "date",
        "via",
        "cache-status",
        "server",
        "connection",
        "proxy-status",
    ];
    let fields = answer
        .fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value));
    let mut fields: Vec<_> = fields
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    fields.sort();
    fields.push(format!("{} {}", answer.status, answer.text()));
    fields
}

#[tokio::test]
async fn what_does_not_exist_is_refused_in_difys_words_and_dify_is_not_asked() {
    let (_server, _dify, origin, edge) = all(GuardMode::Enforce).await;
    let open = edge::start(&[origin.address], |_| {}).await;
    let before = origin.counts().requests;
    let missing = format!("/v1/datasets/{}/documents", uuid(2).0);
    let refused = [
        read(&edge, "app-nobodyhasthis00000000000", "/v1/parameters").await,
        read(&edge, DATASETS, &missing).await,
    ];
    assert_eq!(origin.counts().requests, before);
    let asked = [
        read(&open, "app-nobodyhasthis00000000000", "/v1/parameters").await,
        read(&open, DATASETS, &missing).await,
    ];
    assert_eq!(origin.counts().requests, before + 2);
    for (refused, asked) in refused.iter().zip(&asked) {
        assert_eq!(without_date(refused), without_date(asked));
        assert!(
            refused.cache_status().contains("guard"),
            "{}",
            refused.cache_status()
        );
    }
    assert_eq!(refused[0].status, 401);
    assert_eq!(refused[1].status, 404);
    assert_eq!(counted(&edge, "dify_edge_guard_refusals_total").await, 2.0);
    // What exists passes.
    let there = format!("/v1/datasets/{}/documents", uuid(1).0);
    assert_eq!(read(&edge, DATASETS, &there).await.status, 200);
}

#[tokio::test]
async fn what_is_no_uuid_is_refused_as_by_difys_router_when_enforced_and_compared_when_observed() {
    const TARGET: &str = "/v1/datasets/not-a-uuid";
    let (server, _dify, origin, edge) = all(GuardMode::Enforce).await;
    let observing = guarded(&origin, guard(GuardMode::Observe, Some(server.owner_url()))).await;
    armed(&observing, "dataset").await;
    assert_eq!(read(&observing, KEY, "/v1/info").await.status, 200);
    let before = origin.counts().requests;
    let refused = read(&edge, DATASETS, TARGET).await;
    assert_eq!(origin.counts().requests, before);
    let asked = read(&observing, DATASETS, TARGET).await;
    assert_eq!(origin.counts().requests, before + 1);
    assert_eq!(without_date(&refused), without_date(&asked));
    assert_eq!((refused.status, refused.text().as_str()), (404, NO_ROUTE));
    assert_eq!(counted(&edge, "dify_edge_guard_refusals_total").await, 1.0);
    assert_eq!(
        counted(&observing, "dify_edge_guard_would_refuse_total").await,
        1.0
    );
    assert_eq!(
        counted(&observing, "dify_edge_guard_false_refusals_total").await,
        0.0
    );
    let learning = guarded(&origin, guard(GuardMode::Enforce, None)).await;
    assert_eq!(read(&learning, KEY, "/v1/info").await.status, 200);
    let passed = read(&learning, DATASETS, TARGET).await;
    assert!(
        !passed.cache_status().contains("guard"),
        "{}",
        passed.cache_status()
    );
}

#[tokio::test]
async fn what_was_created_behind_our_back_passes_on_its_first_request() {
    let (server, dify, _origin, edge) = all(GuardMode::Enforce).await;
    let (text, _) = uuid(7);
    dify.0.lock().insert(text.clone());
    // So old that no refresh finds it.
    insert(&server, "datasets", 7, "2 hours").await;
    let answer = read(&edge, DATASETS, &format!("/v1/datasets/{text}/documents")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found = metrics::sum(edge.admin, "dify_edge_guard_lookups_total", &["found"]).await;
    assert_eq!(found, 1.0);
}

#[tokio::test]
async fn what_was_created_through_us_is_known_before_its_creator_knows_it() {
    let (_server, _dify, _origin, edge) = all(GuardMode::Enforce).await;
    let target = format!("/console/api/apps/{}/api-keys", uuid(1).0);
    let created = edge
        .ask(post(&target, &[("Authorization", "Bearer someone")], ""))
        .await;
    assert_eq!(created.status, 201);
    let key = created.json()["token"].as_str().expect("a key").to_owned();
    // The database does not have it, so only the answer can have told.
    assert_eq!(read(&edge, &key, "/v1/parameters").await.status, 200);
}

#[tokio::test]
async fn a_key_that_is_deleted_in_the_database_ends_what_was_stored_for_it() {
    let (server, dify, _origin, edge) = all(GuardMode::Enforce).await;
    assert!(read(&edge, KEY, "/v1/info").await.is_hit());
    server
        .execute(&format!("DELETE FROM api_tokens WHERE token = '{KEY}'"))
        .await;
    dify.0.lock().remove(KEY);
    eventually("the key to be refused", || async {
        (read(&edge, KEY, "/v1/info").await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn whoever_observes_refuses_nothing_and_sees_whether_he_could() {
    let (_server, dify, origin, edge) = all(GuardMode::Observe).await;
    let before = origin.counts().requests;
    assert_eq!(
        read(&edge, "app-nobodyhasthis00000000000", "/v1/info")
            .await
            .status,
        401
    );
    assert_eq!(origin.counts().requests, before + 1);
    assert_eq!(counted(&edge, "dify_edge_guard_would_refuse_total").await, 1.0);
    assert_eq!(counted(&edge, "dify_edge_guard_false_refusals_total").await, 0.0);
    // The origin has one that its database does not have.
    let strange = "app-strange00000000000000000";
    dify.0.lock().insert(strange.into());
    assert_eq!(read(&edge, strange, "/v1/info").await.status, 200);
    assert_eq!(counted(&edge, "dify_edge_guard_false_refusals_total").await, 1.0);
}

#[tokio::test]
async fn without_a_database_nothing_is_refused_but_who_guesses_is_slowed_down_alone() {
    let dify = Dify::with(&[KEY, DATASETS]);
    let origin = dify.start().await;
    let edge = guarded(
        &origin,
        GuardConfig {
            unknown_per_minute: 3,
            ..guard(GuardMode::Enforce, None)
        },
    )
    .await;
    assert_eq!(read(&edge, DATASETS, "/v1/datasets").await.status, 200);
    assert_eq!(read(&edge, KEY, "/v1/info").await.status, 200);
    let mut statuses = Vec::new();
    for number in 0..5 {
        let target = format!("/v1/datasets/{}/documents", uuid(100 + number).0);
        statuses.push(read(&edge, DATASETS, &target).await);
    }
    let last = statuses.pop().expect("the last");
    assert_eq!(statuses[0].status, 404);
    assert_eq!(last.status, 429, "{}", last.text());
    assert!(last.field("retry-after").is_some());
    // The same one again is answered from memory, without a token.
    let before = origin.counts().requests;
    let again = read(
        &edge,
        DATASETS,
        &format!("/v1/datasets/{}/documents", uuid(100).0),
    )
    .await;
    assert_eq!((again.status, origin.counts().requests), (404, before));
    // Others feel nothing.
    assert_eq!(read(&edge, KEY, "/v1/parameters").await.status, 200);
}

#[tokio::test]
async fn what_is_missing_without_known_words_passes_within_the_clients_budget() {
    let (_server, _dify, origin, edge) = all_with(|guard| guard.unknown_per_minute = 3).await;
    armed(&edge, "message").await;
    let before = origin.counts().requests;
    let mut statuses = Vec::new();
    for number in 0..5 {
        let target = format!("/v1/messages/{}/suggested?user=ann", uuid(100 + number).0);
        statuses.push(read(&edge, KEY, &target).await.status);
    }
    // One more may have come back meanwhile.
    assert_eq!((statuses[0], statuses[4]), (200, 429), "{statuses:?}");
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(origin.counts().requests - before, passed);
}

#[tokio::test]
async fn a_database_that_is_gone_or_lacks_a_column_stops_no_request() {
    let (mut server, dify, _origin, edge) = all(GuardMode::Enforce).await;
    server
        .execute("ALTER TABLE documents DROP COLUMN created_at")
        .await;
    let documents = || async {
        let ready = metrics::ask(edge.admin, "/ready").await.json();
        let kinds = ready["guard"]["kinds"].as_array().cloned().unwrap_or_default();
        kinds.into_iter().find(|known| known["kind"] == "document")
    };
    let told = eventually("the error to be told", || async {
        documents()
            .await
            .filter(|documents| documents["error"].is_string())
    })
    .await;
    let error = told["error"].as_str().unwrap_or_default();
    assert!(error.contains("documents.created_at"), "{error}");
    assert_eq!(told["armed"], false, "nobody sees what is new");
    server
        .execute("ALTER TABLE documents ADD COLUMN created_at timestamp NOT NULL DEFAULT now()")
        .await;
    armed(&edge, "document").await;
    server.kill();
    // The last that was known stays, and of what is not known nobody can say whether it is new.
    assert_eq!(read(&edge, KEY, "/v1/meta").await.status, 200);
    dify.0.lock().insert("app-new000000000000000000000".into());
    assert_eq!(
        read(&edge, "app-new000000000000000000000", "/v1/meta")
            .await
            .status,
        200
    );
}

//! Document writes whose work Celery does: what they touch is not kept until the work is known to be done, or has
//! had its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use dify_edge::types::time::{Clock, ManualTime};
use dify_edge::types::units::Span;

use crate::support::captures;
use crate::support::client::{Answer, get, post, request};
use crate::support::edge::{self, Running};
use crate::support::origin::{Origin, json};

const KEY: (&str, &str) = ("Authorization", "Bearer dataset-1");
const CONSOLE: [(&str, &str); 2] = [("Cookie", "access_token=a; csrf_token=b"), ("X-CSRF-Token", "b")];
const DATASET: &str = "/v1/datasets/5f0e7a3c-0000-4000-8000-00000000000d";
const SAME_DATASET: &str = "/console/api/datasets/5f0e7a3c-0000-4000-8000-00000000000d";
const OTHER: &str = "/v1/datasets/5f0e7a3c-0000-4000-8000-00000000000e";
const DOCUMENT: &str = "/documents/5f0e7a3c-0000-4000-8000-00000000000f";

/// The body that a real dify-api answered.
fn recorded(name: &str) -> String {
    let body = &captures::named(name).response.body;
    String::from_utf8(body.clone()).expect("text")
}

/// The batch in the recorded answer to a new document.
fn recorded_batch() -> String {
    let created: serde_json::Value =
        serde_json::from_str(&recorded("v1_document_create_by_text")).expect("JSON");
    created["batch"].as_str().expect("a batch").to_owned()
}

struct Bench {
    /// How many documents are indexed completely: the statuses that are asked for tell of one more each time.
    done: Arc<AtomicUsize>,
    time: Arc<ManualTime>,
    edge: Running,
    _origin: Origin,
}

impl Bench {
    /// An origin that creates documents in the recorded batch, or in those that the request names (`/batch/`).
    async fn new() -> Self {
        let done = Arc::new(AtomicUsize::new(0));
        let state = done.clone();
        let origin = Origin::start(move |seen| {
            let target = seen.target.clone();
            let actions = if target.contains("/indexing-status") {
                let name = ["v1_document_status_poll_first", "v1_document_status_poll_last"];
                json(200, recorded(name[state.load(Ordering::SeqCst)]))
            } else if seen.method == "POST" {
                let created = recorded("v1_document_create_by_text");
                let batch = String::from_utf8_lossy(&seen.body).into_owned();
                match batch.strip_prefix("batch ") {
                    Some(batch) => json(200, created.replace(&recorded_batch(), batch)),
                    None => json(200, created),
                }
            } else {
                json(200, "{}")
            };
            async move { actions }
        })
        .await;
        let (clock, time) = Clock::manual(SystemTime::now());
        let edge = edge::start_at(&[origin.address], clock, |config| {
            config.cache.classes.listing.ttl = Span::secs(600);
        })
        .await;
        Self {
            done,
            time,
            edge,
            _origin: origin,
        }
    }

    async fn get(&self, target: &str) -> Answer {
        self.edge.ask(get(target, &[KEY])).await
    }

    async fn create(&self, dataset: &str, body: &str) -> Answer {
        let target = format!("{dataset}/document/create-by-text");
        self.edge.ask(post(&target, &[KEY], body)).await
    }

    async fn status(&self, batch: &str) -> Answer {
        self.get(&format!("{DATASET}/documents/{batch}/indexing-status"))
            .await
    }

    /// Whether the answer to the target is kept: the second one comes from memory.
    async fn keeps(&self, target: &str) -> bool {
        self.get(target).await;
        self.get(target).await.is_hit()
    }
}

fn touched() -> [String; 4] {
    [
        "/v1/datasets".into(),
        DATASET.into(),
        format!("{DATASET}/documents"),
        format!("{DATASET}{DOCUMENT}/segments"),
    ]
}

#[tokio::test]
async fn a_new_documents_reads_are_kept_again_when_its_batch_is_indexed() {
    let bench = Bench::new().await;
    for target in touched() {
        assert!(bench.keeps(&target).await, "{target}");
    }
    let created = bench.create(DATASET, "{}").await;
    assert_eq!(created.text(), recorded("v1_document_create_by_text"));
    let batch = recorded_batch();
    for _ in 0..2 {
        for target in touched() {
            assert!(!bench.keeps(&target).await, "{target} while the batch waits");
        }
        let status = bench.status(&batch).await;
        assert_eq!(status.text(), recorded("v1_document_status_poll_first"));
    }
    assert!(
        bench.keeps(&format!("{OTHER}/documents")).await,
        "another data set"
    );
    bench.done.store(1, Ordering::SeqCst);
    let status = bench.status(&batch).await;
    assert_eq!(status.text(), recorded("v1_document_status_poll_last"));
    for target in touched() {
        assert!(bench.keeps(&target).await, "{target} when the batch is done");
    }
}

#[tokio::test]
async fn the_console_tells_of_the_same_batch() {
    let bench = Bench::new().await;
    let init = "/console/api/datasets/init";
    bench.edge.ask(post(init, &CONSOLE, "{}")).await;
    for target in touched() {
        assert!(!bench.keeps(&target).await, "{target} while the batch waits");
    }
    bench.done.store(1, Ordering::SeqCst);
    let status = format!("{SAME_DATASET}/batch/{}/indexing-status", recorded_batch());
    assert_eq!(bench.edge.ask(get(&status, &CONSOLE)).await.status, 200);
    for target in touched() {
        assert!(bench.keeps(&target).await, "{target} when the batch is done");
    }
}

#[tokio::test]
async fn of_two_writes_the_end_of_one_is_not_enough() {
    let bench = Bench::new().await;
    bench.done.store(1, Ordering::SeqCst);
    bench.create(DATASET, "batch 1").await;
    bench.create(DATASET, "batch 2").await;
    for batch in ["1", "2"] {
        bench.status(batch).await;
        for target in touched() {
            assert!(!bench.keeps(&target).await, "{target} after {batch}");
        }
    }
    bench.time.advance(Duration::from_secs(30));
    for target in touched() {
        assert!(bench.keeps(&target).await, "{target} after the window");
    }
}

#[tokio::test]
async fn work_without_a_batch_has_its_window() {
    let bench = Bench::new().await;
    let document = format!("{DATASET}{DOCUMENT}");
    bench.edge.ask(request("DELETE", &document, &[KEY], b"")).await;
    bench.done.store(1, Ordering::SeqCst);
    bench.status(&recorded_batch()).await;
    bench.time.advance(Duration::from_secs(29));
    for target in touched() {
        assert!(!bench.keeps(&target).await, "{target} within the window");
    }
    bench.time.advance(Duration::from_secs(1));
    for target in touched() {
        assert!(bench.keeps(&target).await, "{target} after the window");
    }
}

//! Work that outlives its request is stopped, asked about and gone on with where it was begun, through any instance.

use std::net::SocketAddr;

use dify_edge::config::Config;
use dify_edge::types::units::Span;

use crate::support::client::{Answer, get, post};
use crate::support::edge::{self, Running};
use crate::support::eventually;
use crate::support::fleet;
use crate::support::metrics::{self, sum};
use crate::support::origin::{Origin, Script, chunk, events, json, last_chunk};
use crate::support::redis::Redis;

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");
const DATASET: &str = "123644ad-6668-4a64-b485-c4e6fe00da57";

/// A dify-api that says its name, and in chats and creations of documents what it has begun.
async fn dify(name: &'static str) -> Origin {
    Origin::start(move |seen| async move { answer(name, &seen.target) }).await
}

/// What a chat is answered with, chunk by chunk.
fn pieces(name: &str) -> [String; 2] {
    [
        format!(
            "data: {{\"event\":\"message\",\"conversation_id\":\"talk-{name}\",\"task_id\":\"task-{name}\"}}\n\n"
        ),
        "data: {\"event\":\"message_end\",\"task_id\":\"other\"}\n\n".to_owned(),
    ]
}

fn answer(name: &str, target: &str) -> Script {
    if target.ends_with("/chat-messages") {
        let pieces = pieces(name);
        vec![events(), chunk(&pieces[0]), chunk(&pieces[1]), last_chunk()]
    } else if target.ends_with("/create-by-text") {
        json(
            200,
            format!("{{\"document\": {{\"name\": \"x\"}}, \"batch\": \"batch-{name}\"}}"),
        )
    } else {
        json(200, format!("\"{name}\""))
    }
}

struct Clusters {
    primary: Origin,
    _standby: Origin,
    edges: Vec<Running>,
    _redis: Redis,
}

impl Clusters {
    /// Two instances before two clusters.
    async fn start() -> Self {
        let redis = Redis::start().await;
        let (primary, standby) = (dify("primary").await, dify("standby").await);
        let url = format!("redis://{}", redis.address);
        let mut edges = Vec::new();
        for _ in 0..2 {
            let change = |config: &mut Config| {
                fleet::shared(config, &url);
                quick(config, standby.address);
            };
            edges.push(edge::start(&[primary.address], change).await);
        }
        Self {
            primary,
            _standby: standby,
            edges,
            _redis: redis,
        }
    }

    /// The primary hangs until both instances send writes to the standby.
    async fn shift(&self) {
        self.primary.stop();
        for edge in &self.edges {
            eventually("the writes to shift", || async {
                let labels = ["cluster=\"standby\""];
                (sum(edge.admin, "dify_edge_failover_active", &labels).await == 1.0).then_some(())
            })
            .await;
        }
    }

    /// The primary answers again, and both instances know.
    async fn recover(&self) {
        self.primary.go_on();
        for edge in &self.edges {
            metrics::until_healthy(edge.admin, 2.0).await;
        }
    }

    async fn chat(&self, edge: usize, body: &str) -> Answer {
        self.edges[edge]
            .ask(post("/v1/chat-messages", &[KEY], body))
            .await
    }

    async fn stop(&self, edge: usize, task: &str) -> Answer {
        let target = format!("/v1/chat-messages/{task}/stop");
        self.edges[edge]
            .ask(post(&target, &[KEY], "{\"user\": \"u\"}"))
            .await
    }
}

fn quick(config: &mut Config, standby: SocketAddr) {
    config.failover.after = Span::millis(300);
    config.failback.after = Span::secs(3600);
    let api = edge::api(config);
    api.standby = vec![edge::replica(&standby)];
    api.health_check.interval = Span::millis(100);
    api.health_check.timeout = Span::millis(300);
}

#[tokio::test]
async fn work_is_stopped_and_gone_on_with_where_it_was_begun_through_any_instance() {
    let clusters = Clusters::start().await;
    let new = "{\"query\": \"hi\", \"user\": \"u\"}";
    let begun = clusters.chat(0, new).await;
    assert!(begun.text().contains("task-primary"), "{}", begun.text());
    let create = format!("/v1/datasets/{DATASET}/document/create-by-text");
    let batch = clusters.edges[0]
        .ask(post(&create, &[KEY], "{\"text\": \"x\"}"))
        .await;
    assert!(batch.text().contains("batch-primary"));

    clusters.shift().await;
    // While its cluster is gone, that is said; what is new goes to the other.
    for edge in [0, 1] {
        let gone = clusters.stop(edge, "task-primary").await;
        assert_eq!(gone.status, 503, "{}", gone.text());
        assert!(
            gone.json()["message"]
                .as_str()
                .unwrap()
                .contains("primary cluster")
        );
        assert!(gone.field("retry-after").is_some());
        let status = gone.field("proxy-status").unwrap();
        assert!(status.contains("destination_unavailable"), "{status}");
    }
    let begun = clusters.chat(1, new).await;
    assert!(begun.text().contains("task-standby"), "{}", begun.text());

    clusters.recover().await;
    for edge in [0, 1] {
        assert_eq!(clusters.stop(edge, "task-primary").await.text(), "\"primary\"");
        assert_eq!(clusters.stop(edge, "task-standby").await.text(), "\"standby\"");
        let status = format!("/v1/datasets/{DATASET}/documents/batch-primary/indexing-status");
        let status = clusters.edges[edge].ask(get(&status, &[KEY])).await;
        assert_eq!(status.text(), "\"primary\"");
    }
    for edge in [0, 1] {
        for name in ["primary", "standby"] {
            let body =
                format!("{{\"query\": \"more\", \"conversation_id\": \"talk-{name}\", \"user\": \"u\"}}");
            assert_eq!(clusters.chat(edge, &body).await.text(), pieces(name).concat());
        }
    }
}

#[tokio::test]
async fn a_stream_that_tells_of_work_is_passed_on_as_it_came() {
    let clusters = Clusters::start().await;
    let through = clusters.chat(0, "{\"query\": \"hi\", \"user\": \"u\"}").await;
    let chunks: Vec<_> = through
        .chunks
        .iter()
        .map(|chunk| String::from_utf8_lossy(chunk))
        .collect();
    assert_eq!(chunks, pieces("primary"));
}

//! Several instances before one origin that counts its versions, with a Redis that they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dify_edge::config::cache::CacheType;
use dify_edge::config::{Config, Token};
use dify_edge::types::units::Span;

use super::client::{Answer, get, post, request};
use super::edge::{self, Running};
use super::eventually;
use super::origin::{Origin, Script, json};

/// The administrative token of every instance.
pub const TOKEN: &str = "a-token-for-behaviour-tests";

/// See the module.
pub struct Fleet {
    /// The origin: each answer says how many writes there were before it.
    pub origin: Origin,
    /// The instances.
    pub edges: Vec<Running>,
    url: String,
    version: Arc<AtomicUsize>,
}

impl Fleet {
    /// So many instances, each of which uses the Redis at `url` when this returns.
    pub async fn start(count: usize, url: &str) -> Self {
        Self::start_with(count, url, |_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(count: usize, url: &str, change: impl Fn(&mut Config)) -> Self {
        let fleet = Self::deaf(count, url, change).await;
        for edge in &fleet.edges {
            uses_redis(edge).await;
        }
        fleet
    }

    /// The same, whether they can use that Redis or not.
    pub async fn deaf(count: usize, url: &str, change: impl Fn(&mut Config)) -> Self {
        let version = Arc::new(AtomicUsize::new(0));
        let counter = version.clone();
        let origin = Origin::start(move |seen| {
            let script = answer(&counter, &seen.method);
            async move { script }
        })
        .await;
        let mut fleet = Self {
            origin,
            edges: Vec::new(),
            url: url.to_owned(),
            version,
        };
        for _ in 0..count {
            fleet.one_more(&change).await;
        }
        fleet
    }

    /// Starts one more instance.
    pub async fn one_more(&mut self, change: impl Fn(&mut Config)) {
        let edge = edge::start(&[self.origin.address], |config| {
            shared(config, &self.url);
            change(config);
        })
        .await;
        self.edges.push(edge);
    }

    /// How many writes the origin has seen.
    pub fn version(&self) -> usize {
        self.version.load(Ordering::SeqCst)
    }

    /// Reads `/v1/parameters` through an instance, as this caller.
    pub async fn read(&self, edge: usize, who: &str) -> Answer {
        let answer = self.edges[edge].ask(parameters(who)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    /// Changes an app through an instance; tells the version that every later answer has to have.
    pub async fn edit(&self, edge: usize) -> usize {
        let target = "/console/api/apps/5f0e7a3c-0000-4000-8000-00000000000a/model-config";
        let answer = self.edges[edge]
            .ask(post(target, &[("Authorization", "Bearer someone")], "{}"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.version()
    }

    /// Waits until an instance gives this caller at least this version.
    pub async fn sees(&self, edge: usize, who: &str, version: usize) {
        eventually("the edit to be seen", || async {
            (of(&self.read(edge, who).await) >= version).then_some(())
        })
        .await;
    }
}

fn answer(version: &AtomicUsize, method: &str) -> Script {
    match method {
        "GET" => {
            let version = version.load(Ordering::SeqCst);
            json(200, format!("{{\"version\": {version}}}"))
        }
        _ => {
            version.fetch_add(1, Ordering::SeqCst);
            json(200, "{\"result\": \"success\"}")
        }
    }
}

/// The settings of one of many.
pub fn shared(config: &mut Config, url: &str) {
    config.cache.r#type = CacheType::Redis;
    config.cache.redis.url = Some(url.to_owned());
    // Builds without optimisation, beside many other tests.
    config.cache.redis.timeout = Span::millis(500);
    config.admin.token = Some(Token(TOKEN.into()));
    config.limits.connections_per_peer = 10_000;
}

/// The request for the parameters of the app with this key.
pub fn parameters(who: &str) -> Vec<u8> {
    get("/v1/parameters", &[("Authorization", &format!("Bearer {who}"))])
}

/// Waits until an instance uses Redis and hears the others.
pub async fn uses_redis(edge: &Running) {
    redis_is(edge, true).await;
}

/// Waits until an instance uses Redis and hears the others, or does neither.
pub async fn redis_is(edge: &Running, used: bool) {
    eventually("the state of Redis", || async {
        let redis = super::metrics::ask(edge.admin, "/ready").await.json()["redis"].clone();
        (redis["used"] == used && redis["heard"] == used).then_some(())
    })
    .await;
}

/// What `/cache/stats` of an instance says of Redis.
pub async fn stats(edge: &Running) -> serde_json::Value {
    super::metrics::ask(edge.admin, "/cache/stats").await.json()["l2"].clone()
}

/// Purges everything through an instance.
pub async fn purge(edge: &Running) -> Answer {
    let fields = [
        ("Authorization", &*format!("Bearer {TOKEN}")),
        ("Content-Type", "application/json"),
    ];
    let mut client = super::client::Client::connect(edge.admin).await;
    client
        .exchange(request("POST", "/cache/purge", &fields, b"{\"all\": true}"))
        .await
}

/// The version that an answer is of.
pub fn of(answer: &Answer) -> usize {
    answer.json()["version"].as_u64().expect("a version") as usize
}

/// Whether an answer came from Redis.
pub fn is_l2(answer: &Answer) -> bool {
    answer.is_hit() && answer.cache_status().ends_with("detail=l2")
}

//! What one instance learns the others know: soon, when they start later, and after Redis was away.
//!
//! Against real servers. Whoever has to prove that it heard something refuses what it does not know: it has read all of
//! a database in which that thing is not, looks nothing up, and does not look at the database again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dify_edge::config::cache::CacheType;
use dify_edge::config::guard::{GuardConfig, GuardMode, LearnedConfig, PostgresConfig, SourceConfig};
use dify_edge::types::known::KnownId;
use dify_edge::types::units::Span;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::client::{Answer, get, post};
use crate::support::edge::{self, Running};
use crate::support::fleet::shared;
use crate::support::known::{insert, insert_key, uuid};
use crate::support::metrics;
use crate::support::origin::{Origin, Script, Seen, answer};
use crate::support::postgres::Postgres;
use crate::support::redis::cluster::Cluster;
use crate::support::redis::sentinel::Sentinels;
use crate::support::redis::{Redis, command};
use crate::support::{at_last, eventually};

const DATASETS: &str = "dataset-0123456789abcdefghijklmn";
const KEY: &str = "app-0123456789abcdefghijklmn";
const STREAM: &str = "dify-edge:known";
/// The codes of kinds in the stream.
const APP_KEY: u8 = 1;
const DATASET: u8 = 5;

/// Dify, a database that has two keys and data set 1 whatever Dify creates, and instances before it.
struct World {
    dify: Arc<Mutex<HashSet<String>>>,
    origin: Origin,
    database: Postgres,
    redis_url: String,
}

impl World {
    async fn new(redis_url: String) -> Self {
        let database = Postgres::start().await;
        insert_key(&database, DATASETS).await;
        insert_key(&database, KEY).await;
        insert(&database, "datasets", 1, "1 hour").await;
        let dify = Arc::new(Mutex::new(HashSet::from([
            DATASETS.to_owned(),
            KEY.to_owned(),
            uuid(1).0,
        ])));
        let things = dify.clone();
        let origin = Origin::start(move |seen| {
            let script = dify_says(&mut things.lock(), &seen);
            async move { script }
        })
        .await;
        Self {
            dify,
            origin,
            database,
            redis_url,
        }
    }

    /// An instance that knows no more than Dify's answers and its peers.
    async fn learning(&self) -> Running {
        let source = SourceConfig::Learned(LearnedConfig {});
        self.instance(source, |_| {}).await
    }

    /// An instance that refuses what is neither in the database nor told by its peers.
    async fn refusing(&self) -> Running {
        self.refusing_with(0, Span::secs(3600)).await
    }

    /// The same, but it looks up so many in a second, and looks at the database so often.
    async fn refusing_with(&self, lookups: u32, refresh: Span) -> Running {
        let source = SourceConfig::Postgres(PostgresConfig {
            url: Some(self.database.owner_url()),
            refresh,
            ..PostgresConfig::default()
        });
        let edge = self
            .instance(source, |guard| guard.lookups_per_second = lookups)
            .await;
        for kind in ["app_key", "dataset_key", "dataset"] {
            at_last("all of a kind to be known", || async {
                let kinds = guard_of(&edge).await["kinds"].clone();
                let is_armed = |known: &Value| known["kind"] == kind && known["armed"] == true;
                kinds.as_array()?.iter().any(is_armed).then_some(())
            })
            .await;
        }
        // What all of Dify's answers carry is seen in the first.
        assert_eq!(read(&edge, KEY, "/v1/info").await.status, 200);
        let before = self.origin.counts().requests;
        assert_eq!(dataset(&edge, 999).await, 404);
        assert_eq!(self.origin.counts().requests, before, "it refuses");
        edge
    }

    async fn instance(&self, source: SourceConfig, change: impl FnOnce(&mut GuardConfig)) -> Running {
        let mut guard = GuardConfig {
            mode: GuardMode::Enforce,
            sources: vec![source],
            lookups_per_second: 0,
            ..GuardConfig::default()
        };
        change(&mut guard);
        let edge = edge::start(&[self.origin.address], |config| {
            shared(config, &self.redis_url);
            // From Redis an answer would tell nothing of this Dify.
            config.cache.classes.metadata.ttl = Span::secs(0);
            config.guard = Some(guard);
        })
        .await;
        connected(&edge, true).await;
        edge
    }
}

fn dify_says(things: &mut HashSet<String>, seen: &Seen) -> Script {
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
    let number = || String::from_utf8_lossy(&seen.body).parse().expect("a number");
    match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", "/v1/datasets") => {
            let (id, _) = uuid(number());
            things.insert(id.clone());
            return said(200, &format!("{{\"id\": \"{id}\"}}"));
        }
        ("POST", target) if target.ends_with("/api-keys") => {
            let key = key(number());
            things.insert(key.clone());
            return said(
                201,
                &format!("{{\"id\": \"{}\", \"token\": \"{key}\"}}", uuid(9).0),
            );
        }
        ("GET", "/v1/datasets") => {
            let ids = things.iter().filter(|thing| thing.len() == 36);
            let ids: Vec<_> = ids.map(|id| format!("{{\"id\": \"{id}\"}}")).collect();
            return said(200, &format!("{{\"data\": [{}]}}", ids.join(", ")));
        }
        _ => {}
    }
    let bearer = seen
        .field("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    let dataset = seen
        .target
        .strip_prefix("/v1/datasets/")
        .and_then(|rest| rest.get(..36));
    if !bearer.is_some_and(|key| things.contains(key)) {
        let body =
            "{\"code\": \"unauthorized\", \"message\": \"Access token is invalid\", \"status\": 401}\n";
        return said(401, body);
    }
    if dataset.is_some_and(|id| !things.contains(id)) {
        return said(
            404,
            "{\"code\": \"not_found\", \"message\": \"Dataset not found.\", \"status\": 404}\n",
        );
    }
    said(200, "{\"data\": []}")
}

fn key(number: u32) -> String {
    format!("app-{number:024}")
}

async fn read(edge: &Running, key: &str, target: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    edge.ask(get(target, &[("Authorization", &bearer)])).await
}

/// Creates a data set through an instance.
async fn create(edge: &Running, number: u32) {
    let bearer = format!("Bearer {DATASETS}");
    let fields = [
        ("Authorization", bearer.as_str()),
        ("Content-Type", "application/json"),
    ];
    let created = edge.ask(post("/v1/datasets", &fields, &number.to_string())).await;
    assert_eq!(created.status, 200, "{}", created.text());
}

/// Creates a key through an instance.
async fn create_key(edge: &Running, number: u32) {
    let target = format!("/console/api/apps/{}/api-keys", uuid(1).0);
    let fields = [("Authorization", "Bearer someone")];
    let created = edge.ask(post(&target, &fields, &number.to_string())).await;
    assert_eq!(created.status, 201, "{}", created.text());
}

/// What an instance answers to who asks for a data set.
async fn dataset(edge: &Running, number: u32) -> u16 {
    let target = format!("/v1/datasets/{}/documents", uuid(number).0);
    read(edge, DATASETS, &target).await.status
}

async fn hears_of(edge: &Running, number: u32) {
    eventually("a data set to be heard of", || async {
        (dataset(edge, number).await == 200).then_some(())
    })
    .await;
}

async fn guard_of(edge: &Running) -> Value {
    metrics::ask(edge.admin, "/ready").await.json()["guard"].clone()
}

async fn connected(edge: &Running, wanted: bool) {
    at_last("the peers to be heard, or not", || async {
        (guard_of(edge).await["peers"]["connected"] == wanted).then_some(())
    })
    .await;
}

async fn counted(edge: &Running, what: &str) -> f64 {
    metrics::sum(edge.admin, &format!("dify_edge_guard_peers_{what}_total"), &[]).await
}

async fn counts(edge: &Running, what: &str, wanted: f64) {
    eventually("a count", || async {
        (counted(edge, what).await == wanted).then_some(())
    })
    .await;
}

/// What is in an entry.
fn thing(kind: u8, id: KnownId) -> Vec<u8> {
    [&[kind][..], &id.0].concat()
}

/// Puts an entry into the stream, as anybody could.
async fn put(redis: &Redis, place: &str, field: &[u8], value: &[u8]) {
    let mut stream = BufReader::new(TcpStream::connect(redis.address).await.expect("it listens"));
    let words = [b"XADD", STREAM.as_bytes(), place.as_bytes(), field, value];
    let reply = command(&mut stream, &words).await.expect("a reply");
    assert!(reply.text().contains('-'), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_learns_the_other_knows_within_a_second() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    assert_eq!(dataset(&b, 10).await, 404);
    let mut quickest = Duration::MAX;
    for number in 10..13 {
        create(&a, number).await;
        let created = Instant::now();
        hears_of(&b, number).await;
        quickest = quickest.min(created.elapsed());
        assert_eq!(dataset(&a, number).await, 200);
    }
    // The machine may be busy, but not each time.
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    create_key(&a, 5).await;
    eventually("a key to be heard of", || async {
        (read(&b, &key(5), "/v1/parameters").await.status == 200).then_some(())
    })
    .await;
    // And nothing else with it.
    assert_eq!(dataset(&b, 13).await, 404);
    assert_eq!(
        (counted(&a, "heard").await, counted(&b, "told").await),
        (0.0, 0.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_starts_later_knows_what_was_learnt_before() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let a = world.learning().await;
    for number in 10..13 {
        create(&a, number).await;
    }
    // And the key.
    counts(&a, "told", 4.0).await;
    let b = world.learning().await;
    assert_eq!(
        counted(&b, "heard").await,
        4.0,
        "before it says that it hears them"
    );
    let before = metrics::sum(b.admin, "dify_edge_guard_checks_total", &["known"]).await;
    assert_eq!(read(&b, DATASETS, "/v1/info").await.status, 200);
    assert_eq!(dataset(&b, 12).await, 200);
    let known = metrics::sum(b.admin, "dify_edge_guard_checks_total", &["known"]).await;
    assert_eq!(known, before + 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_read_to_its_end_before_its_reader_says_so() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let fill = "for i = 1, 25000 do redis.call('XADD', KEYS[1], '*', 'i', \
                string.char(5) .. string.rep('x', 12) .. struct.pack('>I4', i)) end";
    redis.ask(&["EVAL", fill, "1", STREAM]).await;
    assert_eq!(redis.ask(&["XLEN", STREAM]).await.text(), "25000");
    let b = world.learning().await;
    assert_eq!(counted(&b, "heard").await, 25_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_has_looked_up_the_others_know() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (
        world.refusing_with(200, Span::secs(3600)).await,
        world.refusing().await,
    );
    world.dify.lock().insert(uuid(10).0);
    insert(&world.database, "datasets", 10, "2 hours").await;
    assert_eq!((dataset(&b, 10).await, dataset(&a, 10).await), (404, 200));
    hears_of(&b, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_created_is_told_even_if_it_seemed_to_be_known_and_nothing_twice() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.learning().await);
    // Known to one from the database, which the other does not have.
    assert_eq!(read(&a, DATASETS, "/v1/datasets").await.status, 200);
    assert_eq!(counted(&a, "told").await, 0.0);
    create(&a, 1).await;
    counts(&b, "heard", 1.0).await;
    create(&a, 1).await;
    create(&b, 1).await;
    create(&a, 2).await;
    counts(&b, "heard", 2.0).await;
    // The key that all were sent with was new to one of them.
    counts(&b, "told", 1.0).await;
    assert_eq!(counted(&a, "told").await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_dies_or_hangs_stops_nobody_and_is_told_afterwards() {
    let mut redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    create(&a, 10).await;
    hears_of(&b, 10).await;

    redis.kill();
    for edge in [&a, &b] {
        connected(edge, false).await;
    }
    create(&a, 11).await;
    assert_eq!((dataset(&a, 11).await, dataset(&b, 10).await), (200, 200));
    assert_eq!(guard_of(&a).await["peers"]["waiting"], 1);
    redis.start_again().await;
    hears_of(&b, 11).await;

    for edge in [&a, &b] {
        connected(edge, true).await;
    }
    redis.stop();
    for edge in [&a, &b] {
        connected(edge, false).await;
    }
    create(&a, 12).await;
    assert_eq!((dataset(&a, 12).await, dataset(&b, 11).await), (200, 200));
    redis.go_on();
    hears_of(&b, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_flushed_or_begins_anew_is_read_on() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    create(&a, 10).await;
    hears_of(&b, 10).await;
    redis.ask(&["FLUSHALL"]).await;
    create(&a, 11).await;
    hears_of(&b, 11).await;
    assert_eq!(dataset(&b, 10).await, 200);
    // As of a server whose clock is behind.
    world.dify.lock().insert(uuid(12).0);
    redis.ask(&["DEL", STREAM]).await;
    put(&redis, "5-1", b"i", &thing(DATASET, uuid(12).1)).await;
    hears_of(&b, 12).await;
    assert_eq!(dataset(&b, 11).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_put_into_the_stream_is_passed_over() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    let good = thing(DATASET, uuid(10).1);
    let longer = [&good[..], b"x"].concat();
    let entries: [(&[u8], &[u8]); 7] = [
        (b"", b""),
        (b"i", b""),
        (b"i", b"hello"),
        (b"i", &longer),
        (b"i", &thing(200, uuid(10).1)),
        (b"\xff\xfe", b"\xff"),
        (b"other", &good),
    ];
    for (field, value) in entries {
        put(&redis, "*", field, value).await;
    }
    create(&a, 11).await;
    hears_of(&b, 11).await;
    assert_eq!(counted(&b, "heard").await, 1.0);
    assert_eq!(dataset(&b, 10).await, 404);
    // Something else in its place.
    redis.ask(&["SET", STREAM, "x"]).await;
    connected(&b, false).await;
    create(&a, 12).await;
    redis.ask(&["DEL", STREAM]).await;
    hears_of(&b, 12).await;
    // What can be read, but not written.
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    create(&a, 13).await;
    connected(&a, false).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    hears_of(&b, 13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_told_long_ago_is_not_believed_where_the_database_tells_all() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let b = world.refusing().await;
    let digest = |number| KnownId::of_text(key(number).as_bytes());
    put(&redis, "1000-1", b"i", &thing(APP_KEY, digest(1))).await;
    put(&redis, "1000-2", b"i", &thing(DATASET, uuid(10).1)).await;
    world.dify.lock().extend([uuid(10).0, key(2)]);
    put(&redis, "*", b"i", &thing(APP_KEY, digest(2))).await;
    hears_of(&b, 10).await;
    eventually("a key to be heard of", || async {
        (read(&b, &key(2), "/v1/parameters").await.status == 200).then_some(())
    })
    .await;
    let refused = read(&b, &key(1), "/v1/parameters").await;
    assert!(
        refused.cache_status().contains("guard"),
        "{}",
        refused.cache_status()
    );
    // Who has no database has no better source.
    let c = world.learning().await;
    assert_eq!(
        (counted(&b, "heard").await, counted(&c, "heard").await),
        (2.0, 3.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_deleted_while_it_waited_is_not_told() {
    let mut redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let a = world.refusing_with(0, Span::millis(100)).await;
    redis.kill();
    connected(&a, false).await;
    create_key(&a, 5).await;
    assert_eq!(guard_of(&a).await["peers"]["waiting"], 1);
    // Who has read the second from the database has read the first.
    for number in [5, 6] {
        world.dify.lock().insert(key(number));
        insert_key(&world.database, &key(number)).await;
    }
    let answers = |number, status| {
        let a = &a;
        at_last("the database to be read", move || async move {
            (read(a, &key(number), "/v1/parameters").await.status == status).then_some(())
        })
    };
    answers(6, 200).await;
    let delete = format!("DELETE FROM api_tokens WHERE token = '{}'", key(5));
    world.database.execute(&delete).await;
    // Dify itself would still let it in here, so that it is the guard who does not.
    answers(5, 401).await;
    redis.start_again().await;
    connected(&a, true).await;
    assert_eq!(guard_of(&a).await["peers"]["waiting"], 0);
    assert_eq!(counted(&a, "told").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_does_not_grow_beyond_its_bound() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let source = SourceConfig::Learned(LearnedConfig {});
    let a = world.instance(source, |guard| guard.expected_items = 1_000).await;
    world.dify.lock().extend((10..3_009).map(|number| uuid(number).0));
    assert_eq!(read(&a, DATASETS, "/v1/datasets").await.status, 200);
    // The filter takes some for known ones.
    eventually("everything to be told", || async {
        let waiting = guard_of(&a).await["peers"]["waiting"] == 0;
        (waiting && counted(&a, "told").await > 2_500.0).then_some(())
    })
    .await;
    let kept: u64 = redis
        .ask(&["XLEN", STREAM])
        .await
        .text()
        .parse()
        .expect("a number");
    // Redis drops a hundred at a time.
    assert!((1_000..=1_100).contains(&kept), "{kept}");
    let life: i64 = redis
        .ask(&["PTTL", STREAM])
        .await
        .text()
        .parse()
        .expect("a number");
    assert!(life > 29 * 86_400_000, "{life}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_learnt_last_is_told_before_an_instance_ends() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    create(&a, 10).await;
    // At once, before anything could be gathered.
    drop(a);
    hears_of(&b, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_shared_redis_nothing_is_started() {
    let redis = Redis::start().await;
    let world = World::new(redis.url()).await;
    let edge = edge::start(&[world.origin.address], |config| {
        shared(config, &world.redis_url);
        config.cache.r#type = CacheType::Memory;
        config.guard = Some(GuardConfig::default());
    })
    .await;
    let guard = guard_of(&edge).await;
    assert!(guard["mode"] == "observe" && guard["peers"].is_null(), "{guard}");
    create(&edge, 10).await;
    let clients = redis.ask(&["CLIENT", "LIST"]).await;
    assert_eq!(clients.text().lines().count(), 1, "{clients:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_make_another_the_master_are_followed() {
    let mut sentinels = Sentinels::start().await;
    let world = World::new(sentinels.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    create(&a, 10).await;
    hears_of(&b, 10).await;
    sentinels.servers[0].kill();
    sentinels.taken_over().await;
    for edge in [&a, &b] {
        connected(edge, true).await;
    }
    create(&a, 11).await;
    at_last("the new master to be used", || async {
        (dataset(&b, 11).await == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_carries_what_is_told_and_so_does_the_replica_of_a_lost_master() {
    let mut cluster = Cluster::start(true).await;
    let world = World::new(cluster.url()).await;
    let (a, b) = (world.refusing().await, world.refusing().await);
    create(&a, 10).await;
    hears_of(&b, 10).await;
    let lost = cluster.owner(STREAM).await;
    cluster.nodes[lost].kill();
    cluster.taken_over(lost).await;
    create(&a, 11).await;
    at_last("the replica to be used", || async {
        (dataset(&b, 11).await == 200).then_some(())
    })
    .await;
}

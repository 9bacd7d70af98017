//! The failover drill in small, in one process: three instances, two clusters and a real Redis under load. Whatever
//! happens to the primary cluster, an acknowledged write was carried out exactly once, no safe read fails, and all
//! instances follow. `benches/failover` does it with processes that are killed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use dify_edge::types::units::Span;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::support::client::{get, post};
use crate::support::edge::{self, Running, api, replica};
use crate::support::fleet::shared;
use crate::support::origin::{Options, Origin, json};
use crate::support::redis::Redis;
use crate::support::redis::slow::Slow;
use crate::support::{eventually, metrics};

const INSTANCES: usize = 3;
/// Clients of each instance who write, and who read.
const CLIENTS: usize = 2;
/// The field that tells writes apart.
const ID: &str = "x-drill-id";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    Primary,
    Standby,
}

/// The writes that were carried out, in order: by which cluster, and their ids.
type Journal = Arc<Mutex<Vec<(Cluster, String)>>>;

/// What clients saw of their writes: the id, and the status.
type Writes = Vec<(String, u16)>;

/// Two clusters of two, and three instances before them.
struct Drill {
    primary: Vec<Origin>,
    _standby: Vec<Origin>,
    edges: Arc<Vec<Running>>,
    journal: Journal,
    /// Writes so far.
    next: Arc<AtomicUsize>,
    _redis: Redis,
}

async fn origin(address: SocketAddr, cluster: Cluster, journal: &Journal) -> Origin {
    let (journal, options) = (
        journal.clone(),
        Options {
            forget: true,
            ..Options::default()
        },
    );
    Origin::start_at(address, options, move |seen| {
        // Before anything of the answer is sent.
        if let Some(id) = seen.field(ID) {
            journal.lock().push((cluster, id.to_owned()));
        }
        async { json(200, "{\"result\": \"success\"}") }
    })
    .await
}

impl Drill {
    async fn start() -> Self {
        let (redis, journal) = (Redis::start().await, Journal::default());
        let free = || "127.0.0.1:0".parse().expect("an address");
        let (mut primary, mut standby) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            primary.push(origin(free(), Cluster::Primary, &journal).await);
            standby.push(origin(free(), Cluster::Standby, &journal).await);
        }
        let addresses = |origins: &[Origin]| origins.iter().map(|it| it.address).collect::<Vec<_>>();
        let (firsts, seconds) = (addresses(&primary), addresses(&standby));
        let mut edges = Vec::new();
        for _ in 0..INSTANCES {
            let edge = edge::start(&firsts, |config| {
                shared(config, &redis.url());
                config.failover.after = Span::millis(300);
                config.failback.after = Span::millis(300);
                let api = api(config);
                api.standby = seconds.iter().map(replica).collect();
                api.health_check.interval = Span::millis(50);
                api.health_check.timeout = Span::millis(200);
            })
            .await;
            edges.push(edge);
        }
        let drill = Self {
            primary,
            _standby: standby,
            edges: Arc::new(edges),
            journal,
            next: Arc::default(),
            _redis: redis,
        };
        drill.has_writes("primary").await;
        drill
    }

    /// Waits until every instance says that this cluster has the writes, and that Redis has confirmed it.
    async fn has_writes(&self, cluster: &str) {
        for edge in self.edges.iter() {
            eventually("an instance to follow", || async {
                let upstreams = metrics::ask(edge.admin, "/upstreams").await.json();
                let failover = &upstreams[0]["failover"];
                (failover["active"] == cluster && failover["trouble"].is_null() && failover["epoch"].is_u64())
                    .then_some(())
            })
            .await;
        }
    }

    /// Waits until this cluster has carried out a write of every instance that is not there yet.
    async fn carries_out(&self, cluster: Cluster) {
        let before = self.journal.lock().len();
        eventually("a write of every instance to be carried out", || async {
            let journal = self.journal.lock();
            let of = |instance: usize| {
                let begin = format!("{instance}.");
                journal[before..]
                    .iter()
                    .any(|(by, id)| *by == cluster && id.starts_with(&begin))
            };
            (0..INSTANCES).all(of).then_some(())
        })
        .await;
    }
}

/// Clients who read and write until the load is ended.
struct Load {
    is_over: Arc<AtomicBool>,
    writers: JoinSet<Writes>,
    readers: JoinSet<Vec<u16>>,
}

impl Load {
    fn start(drill: &Drill) -> Self {
        let (is_over, edges) = (Arc::new(AtomicBool::new(false)), &drill.edges);
        let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
        for client in 0..INSTANCES * CLIENTS {
            let instance = client % INSTANCES;
            let (edges, over, next) = (edges.clone(), is_over.clone(), drill.next.clone());
            writers.spawn(async move {
                let mut seen = Writes::new();
                while !over.load(SeqCst) {
                    let id = format!("{instance}.{}", next.fetch_add(1, SeqCst));
                    let fields = [("Authorization", "Bearer app-1"), (ID, &*id)];
                    let body = "{\"inputs\": {}, \"user\": \"u\", \"response_mode\": \"blocking\"}";
                    let answer = edges[instance]
                        .ask(post("/v1/workflows/run", &fields, body))
                        .await;
                    seen.push((id, answer.status));
                }
                seen
            });
        }
        for client in 0..INSTANCES * CLIENTS {
            let (edges, over) = (edges.clone(), is_over.clone());
            readers.spawn(async move {
                let mut seen = Vec::new();
                while !over.load(SeqCst) {
                    let read = get("/console/api/apps", &[("Cookie", "access_token=a")]);
                    seen.push(edges[client % INSTANCES].ask(read).await.status);
                }
                seen
            });
        }
        Self {
            is_over,
            writers,
            readers,
        }
    }

    /// What all clients saw, once each has its last answer.
    async fn end(self) -> (Writes, Vec<u16>) {
        self.is_over.store(true, SeqCst);
        let (writes, reads) = (self.writers.join_all().await, self.readers.join_all().await);
        (writes.concat(), reads.concat())
    }
}

/// Each acknowledged write was carried out once, each other failed visibly and was carried out at most once, and no
/// read failed.
fn hold(journal: &Journal, (writes, reads): &(Writes, Vec<u16>)) {
    let mut times: HashMap<String, usize> = HashMap::new();
    for (_, id) in journal.lock().iter() {
        *times.entry(id.clone()).or_default() += 1;
    }
    for (id, status) in writes {
        let times = times.get(id).copied().unwrap_or_default();
        match status {
            200 => assert_eq!(times, 1, "the write {id} was acknowledged"),
            502..=504 => assert!(times <= 1, "the write {id} was carried out {times} times"),
            _ => panic!("the write {id} was answered with {status}"),
        }
    }
    let failed = reads.iter().filter(|status| **status != 200).count();
    assert_eq!(failed, 0, "of {} safe reads", reads.len());
}

#[tokio::test]
async fn no_write_is_lost_or_doubled_and_no_read_fails_when_the_primary_dies_under_load_and_comes_back() {
    let mut drill = Drill::start().await;
    let load = Load::start(&drill);
    drill.carries_out(Cluster::Primary).await;
    let addresses: Vec<_> = drill.primary.iter().map(|it| it.address).collect();
    drill.primary.clear();
    drill.carries_out(Cluster::Standby).await;
    drill.has_writes("standby").await;
    for address in addresses {
        let again = origin(address, Cluster::Primary, &drill.journal).await;
        drill.primary.push(again);
    }
    drill.has_writes("primary").await;
    drill.carries_out(Cluster::Primary).await;
    hold(&drill.journal, &load.end().await);
}

#[tokio::test]
async fn no_write_is_lost_or_doubled_and_no_read_fails_when_the_primary_freezes_under_load_and_goes_on() {
    let drill = Drill::start().await;
    let load = Load::start(&drill);
    drill.carries_out(Cluster::Primary).await;
    drill.primary.iter().for_each(Origin::stop);
    drill.has_writes("standby").await;
    // Those who wrote when it froze wait for their answers; others would be served.
    let late = Load::start(&drill);
    drill.carries_out(Cluster::Standby).await;
    drill.primary.iter().for_each(Origin::go_on);
    drill.has_writes("primary").await;
    drill.carries_out(Cluster::Primary).await;
    let (mut writes, mut reads) = load.end().await;
    let (more_writes, more_reads) = late.end().await;
    writes.extend(more_writes);
    reads.extend(more_reads);
    hold(&drill.journal, &(writes, reads));
}

#[tokio::test]
async fn a_connection_to_redis_whose_packets_vanish_is_made_anew() {
    let redis = Redis::start().await;
    let road = Slow::to(redis.address).await;
    let (primary, standby) = (Journal::default(), Journal::default());
    let free = || "127.0.0.1:0".parse().expect("an address");
    let (first, second) = (
        origin(free(), Cluster::Primary, &primary).await,
        origin(free(), Cluster::Standby, &standby).await,
    );
    let edge = edge::start(&[first.address], |config| {
        shared(config, &format!("redis://{}", road.address));
        api(config).standby = vec![replica(&second.address)];
    })
    .await;
    let is_confirmed = async |is: bool| {
        eventually("the epoch to be confirmed or not", || async {
            let upstreams = metrics::ask(edge.admin, "/upstreams").await.json();
            (upstreams[0]["failover"]["trouble"].is_null() == is).then_some(())
        })
        .await;
    };
    is_confirmed(true).await;
    road.cut();
    is_confirmed(false).await;
    is_confirmed(true).await;
}

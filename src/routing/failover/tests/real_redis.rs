//! The scripts of [`Redis`](super::super::redis) beside the [`Ledger`]: the same steps give the same answers.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fred::interfaces::KeysInterface as _;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio_util::task::AbortOnDropHandle;

use crate::config::cache::RedisConfig;
use crate::routing::failover::ledger::Ledger;
use crate::routing::failover::record::{Beat, Cause, Details, Heard, Mode, Proposal, Record};
use crate::routing::failover::redis::Redis;
use crate::routing::failover::registry::Registry as _;
use crate::routing::failover::watch::{Look, Sight};
use crate::routing::link::Link;
use crate::types::cluster::Epoch;

/// Longer than the test takes: leases end when the test says so.
const LEASE_MS: u64 = 600_000;

/// A server that ends with the test.
struct Server(Child, SocketAddr);

impl Server {
    fn start() -> Self {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("its address")
        };
        let child = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self(child, address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// An instance that knows this epoch tells what it saw so many milliseconds ago, if it can say when.
    Beat(usize, u64, Option<u64>),
    /// An instance wants one epoch after another, by its lease or by an operator.
    /// The last: whether it comes too late.
    Propose(usize, u64, u64, bool, bool),
    /// The lease ends.
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let ago = prop_oneof![Just(None), Just(Some(0)), Just(Some(300)), Just(Some(60_000))];
    prop_oneof![
        5 => (0..3usize, 1..8u64, ago).prop_map(|(at, epoch, ago)| Step::Beat(at, epoch, ago)),
        4 => (0..3usize, 1..8u64, 1..3u64, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(at, from, more, leased, late)| Step::Propose(at, from, from + more, leased, late)),
        1 => Just(Step::Expire),
    ]
}

fn record(epoch: u64, by: &str) -> Record {
    Record {
        epoch: Epoch(epoch),
        details: Details {
            mode: Mode::Auto,
            cause: Cause::Unhealthy,
            by: format!("{by} \"in\" {epoch}"),
            at_ms: epoch,
        },
    }
}

fn sorted(heard: Heard) -> Heard {
    let mut heard = heard;
    heard
        .looks
        .sort_by(|one, other| one.sight.primary.total_cmp(&other.sight.primary));
    heard
}

#[tokio::test]
async fn the_scripts_in_redis_do_what_the_ledger_does() {
    let server = Server::start();
    let config = RedisConfig {
        url: Some(format!("redis://{}", server.1)),
        ..RedisConfig::default()
    };
    let link = Arc::new(Link::new(config.servers().expect("a URL")));
    let keeping = link.clone();
    let _keeping = AbortOnDropHandle::new(tokio::spawn(async move { keeping.keep().await }));
    let client = loop {
        match link.client() {
            Some(client) => break client,
            None => tokio::task::yield_now().await,
        }
    };
    let mut runner = TestRunner::deterministic();
    for history in 0..60 {
        let redis = Redis::new(link.clone(), "test:", &format!("api-{history}"), LEASE_MS);
        let mut ledger = Ledger::default();
        let mut now = 0;
        let steps = vec(step(), 1..30).new_tree(&mut runner).expect("steps").current();
        for step in steps {
            match step {
                Step::Beat(at, epoch, ago) => {
                    let instance = format!("edge-{at}");
                    let beat = Beat {
                        record: record(epoch, &instance),
                        instance,
                        look: Look {
                            sight: Sight {
                                primary: at as f64 / 4.0,
                                standby: 1.0,
                            },
                            low_ms: [ago, None],
                        },
                        seen_ms: ago.map(|ago| now - u64::min(now, ago)),
                    };
                    let heard = redis.beat(&beat).await.expect("an answer");
                    now = heard.at_ms;
                    let expected = ledger.beat(&beat, LEASE_MS, now);
                    assert_eq!(sorted(heard), sorted(expected), "{step:?}");
                }
                Step::Propose(at, from, to, leased, late) => {
                    let instance = format!("edge-{at}");
                    let proposal = Proposal {
                        from: Epoch(from),
                        record: record(to, &instance),
                        instance,
                        leased,
                        until_ms: if late { now.saturating_sub(1) } else { now + 60_000 },
                    };
                    let begun = redis.propose(&proposal).await.expect("an answer");
                    assert_eq!(begun, ledger.propose(&proposal, now), "{step:?}");
                }
                Step::Expire => {
                    let key = format!("test:{{failover:api-{history}}}lease");
                    client.del::<(), _>(key).await.expect("an answer");
                    ledger.end_lease();
                }
            }
        }
    }
}

//! Replicas that are found by name while the proxy runs.
//!
//! `dns` reads who is there; [`keep`] reads again and again and makes the pool agree: who is new starts slowly, who is
//! no longer named is drained, that is, ends what is in flight and gets nothing new. An answer that names nobody, or
//! none at all, changes nothing: names fail more often than all replicas do at once, and those that are really gone
//! fail their probes. Replicas of the configuration are left alone.

pub(super) mod dns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{sleep, timeout};

use super::metrics::{DiscoveryEvent, DiscoveryMetrics};
use super::pool::Pool;
use super::replica::{Blueprint, Replica};
use crate::config::upstreams::{DiscoveryConfig, ReplicaConfig};
use crate::types::cluster::Cluster;

/// The least time from one reading to the next, whatever the TTL.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// A reading is given up after this.
const LIMIT: Duration = Duration::from_secs(5);
/// Replicas of one upstream that are used, at most.
const MOST: usize = 256;

/// What a reading found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Whether it is on standby, by `http://host:port`.
    pub(super) replicas: BTreeMap<String, bool>,
    /// For how long that may be taken for true.
    pub(super) ttl: Duration,
}

/// Makes `pool` agree with what `read` finds, for ever. `start` is called with each replica that comes.
pub(super) async fn keep(
    pool: &Arc<Pool>,
    blueprint: &Blueprint,
    config: &DiscoveryConfig,
    read: impl Fn() -> BoxFuture<'static, Result<Found, String>>,
    start: impl Fn(Arc<Replica>),
) {
    let metrics = blueprint.metrics.discovery(&pool.name);
    let mut works = true;
    loop {
        let found = timeout(LIMIT, read())
            .await
            .unwrap_or_else(|_| Err("no answer in time".into()))
            .and_then(|found| match found.replicas.len() {
                0 => Err("it names no replica".into()),
                1..=MOST => Ok(found),
                more => Err(format!("it names {more} replicas, which is more than {MOST}")),
            });
        let pause = match found {
            Ok(found) => {
                if !works {
                    metrics.count(DiscoveryEvent::Recovered);
                    tracing::info!(upstream = pool.name, "replicas are found by name again");
                }
                works = true;
                agree(pool, blueprint, config, &found.replicas, &metrics, &start);
                found.ttl.clamp(LEAST_PAUSE, config.refresh.0.max(LEAST_PAUSE))
            }
            Err(why) => {
                if works {
                    metrics.count(DiscoveryEvent::Failed);
                    tracing::warn!(
                        upstream = pool.name,
                        why,
                        "replicas cannot be found by name; those known stay"
                    );
                }
                works = false;
                LEAST_PAUSE
            }
        };
        pool.searched();
        sleep(pause).await;
    }
}

fn agree(
    pool: &Arc<Pool>,
    blueprint: &Blueprint,
    config: &DiscoveryConfig,
    found: &BTreeMap<String, bool>,
    metrics: &DiscoveryMetrics,
    start: &impl Fn(Arc<Replica>),
) {
    let mut known = BTreeMap::new();
    let mut is_first = true;
    for (_, replica) in pool.members.all() {
        is_first = false;
        let is_named = found.get(&replica.url).map(|standby| Cluster::of(*standby)) == Some(replica.cluster);
        if replica.discovered {
            if replica.is_leaving() == is_named {
                replica.set_leaving(!is_named);
                let event = if is_named {
                    DiscoveryEvent::Returned
                } else {
                    DiscoveryEvent::Leaves
                };
                tell(pool, metrics, &replica, event);
                if is_named {
                    replica.signals.lock().came_back(pool.now());
                }
                pool.reconsider();
            }
            if replica.is_leaving() && pool.free(&replica) {
                replica.stop.cancel();
                blueprint.forget(&replica);
                tell(pool, metrics, &replica, DiscoveryEvent::Left);
                continue;
            }
        }
        known.insert(replica.url.clone(), ());
    }
    for (url, standby) in found.iter().filter(|(url, _)| !known.contains_key(*url)) {
        let from = ReplicaConfig {
            url: url.clone(),
            zone: config.zone.clone(),
            labels: config.labels.clone(),
            capacity: None,
        };
        let place = pool.members.next_place();
        match blueprint.build(&from, place, Cluster::of(*standby)) {
            Ok(replica) => {
                let replica = Arc::new(replica.found_by_name());
                if !is_first {
                    // Where all are new, none has to be spared.
                    replica.signals.lock().came_back(pool.now());
                }
                tell(pool, metrics, &replica, DiscoveryEvent::Appeared);
                start(replica.clone());
                pool.join(replica);
            }
            Err(why) => tracing::warn!(upstream = pool.name, why, "a name that was found cannot be used"),
        }
    }
}

fn tell(pool: &Pool, metrics: &DiscoveryMetrics, replica: &Replica, event: DiscoveryEvent) {
    metrics.count(event);
    let what = event.as_str();
    tracing::info!(upstream = pool.name, replica = replica.url, "replica {what}");
}

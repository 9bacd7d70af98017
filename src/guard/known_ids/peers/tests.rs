//! What waits to be told, without any Redis.

use std::time::{Duration, SystemTime};

use super::*;
use crate::guard::bloom::Sizing;

fn alone() -> Arc<Peers> {
    let (clock, _) = Clock::manual(SystemTime::UNIX_EPOCH);
    let sizing = Sizing {
        expected_items: 1024,
        false_positive_rate: 0.01,
    };
    let known = Known::new(sizing, Duration::from_secs(60), clock.clone(), Box::new(|_| {}));
    let redis = RedisConfig {
        url: Some("redis://127.0.0.1:1".to_owned()),
        ..RedisConfig::default()
    };
    let metrics = GuardMetrics::register(&prometheus::Registry::new()).expect("metrics");
    Peers::new(&redis, known, 1024, false, clock, metrics).expect("peers")
}

fn id(number: usize) -> KnownId {
    KnownId((number as u128).to_be_bytes())
}

#[test]
fn what_is_learnt_again_waits_once() {
    let peers = alone();
    for kind in [IdKind::Dataset, IdKind::Document, IdKind::Dataset] {
        peers.tell(kind, id(1));
    }
    assert_eq!(
        peers.report(),
        PeersReport {
            connected: false,
            waiting: 2
        }
    );
}

#[test]
fn the_oldest_is_dropped_and_counted_when_too_many_wait() {
    let peers = alone();
    for number in 0..MOST_WAITING + 3 {
        peers.tell(IdKind::Dataset, id(number));
    }
    assert_eq!(peers.report().waiting, MOST_WAITING);
    assert_eq!(peers.metrics.peers_dropped.get(), 3);
    assert_eq!(peers.waiting.lock().front(), Some(&(IdKind::Dataset, id(3))));
}

#[test]
fn a_redis_that_cannot_be_named_is_an_error_that_names_the_key() {
    let known = alone().known.clone();
    let metrics = GuardMetrics::register(&prometheus::Registry::new()).expect("metrics");
    let made = Peers::new(
        &RedisConfig::default(),
        known,
        1024,
        false,
        Clock::System,
        metrics,
    );
    assert!(made.is_err_and(|why| why.contains("cache.redis.url")));
}

#[tokio::test]
async fn who_cannot_connect_keeps_what_it_would_tell_and_ends_when_it_shall() {
    let peers = alone();
    peers.tell(IdKind::Dataset, id(1));
    let stop = CancellationToken::new();
    let running = tokio::spawn(peers.clone().run(stop.clone()));
    tokio::task::yield_now().await;
    stop.cancel();
    running.await.expect("its end");
    assert_eq!(
        peers.report(),
        PeersReport {
            connected: false,
            waiting: 1
        }
    );
}

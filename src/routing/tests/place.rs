//! Zones and labels over replicas that behave as told. What is drawn is tested with `place`.

use futures_util::future::join_all;

use super::*;
use crate::config::affinity::{AffinityConfig, Operator, Term};

/// `config` whose replicas (standby replicas last) are in these zones, or have these values of the label `disk`.
fn marked(mut config: UpstreamConfig, zones: &[&str], disks: &[&str]) -> UpstreamConfig {
    let replicas = config.replicas.iter_mut().chain(&mut config.standby);
    for (place, replica) in replicas.enumerate() {
        replica.zone = zones.get(place).map(|zone| (*zone).to_owned());
        let disk = disks
            .get(place)
            .map(|disk| ("disk".to_owned(), (*disk).to_owned()));
        replica.labels.extend(disk);
    }
    config
}

/// Every request of a [`Rig`] requires `disk In [ssd]`.
fn only_ssd(config: UpstreamConfig) -> UpstreamConfig {
    let ssd = Term {
        key: "disk".into(),
        operator: Operator::In,
        values: vec!["ssd".into()],
    };
    let rules = AffinityConfig {
        require: vec![ssd],
        prefer: Vec::new(),
    };
    UpstreamConfig {
        affinity: [(RouteClass::Listing, rules)].into(),
        ..config
    }
}

fn in_zone(zone: &str, config: UpstreamConfig) -> Rig {
    Rig::build(config, &BreakerConfig::default(), Some(zone))
}

fn kind(result: Result<Response<Body>, FailedAttempt>) -> Option<FailureKind> {
    result.err().map(|failed| failed.failure.kind)
}

#[tokio::test(start_paused = true)]
async fn a_retry_leaves_the_own_zone_when_nobody_is_left_there() {
    let rig = in_zone("a", marked(config(3, 0, 10, 10), &["a", "a", "b"], &[]));
    for _ in 0..4 {
        rig.send("/", &[0], Some(5)).await.unwrap();
    }
    // The one that is left at home is well, and counts for the whole zone.
    assert_eq!(rig.fake.replicas(), [1, 1, 1, 1]);
    rig.send("/", &[0, 1], Some(5)).await.unwrap();
    assert_eq!(rig.fake.replicas(), [2]);
}

#[tokio::test(start_paused = true)]
async fn what_a_full_zone_cannot_take_goes_elsewhere_and_does_not_wait() {
    let rig = in_zone("a", marked(config(2, 0, 2, 10), &["a", "b"], &[]));
    let results = join_all((0..4).map(|_| rig.get())).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(rig.fake.replicas(), [0, 0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn hard_rules_hold_for_retries_and_for_standby() {
    let rig = Rig::new(only_ssd(marked(
        config(2, 2, 10, 10),
        &[],
        &["ssd", "hdd", "hdd", "ssd"],
    )));
    rig.get().await.unwrap();
    // A retry finds no other replica that it may go to, but the one that stands by.
    rig.send("/", &[0], Some(5)).await.unwrap();
    rig.send("/", &[0, 3], Some(5)).await.unwrap();
    assert_eq!(rig.fake.replicas(), [0, 3, 0]);
    for _ in 0..3 {
        rig.learn(0, Event::RequestFailed);
        rig.learn(3, Event::RequestFailed);
    }
    // As ever: what is unhealthy is better than nothing.
    rig.get().await.unwrap();
    assert_eq!(rig.fake.replicas(), [0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_replica_that_there_is_not() {
    let rig = Rig::new(only_ssd(marked(config(2, 0, 1, 0), &[], &["hdd"])));
    let failure = rig.get().await.unwrap_err().failure;
    assert_eq!(failure.kind, FailureKind::NoReplica);
    assert!(
        failure.detail.contains("`listing`") && failure.detail.contains("disk In [ssd]"),
        "{failure}"
    );
    assert_eq!(rig.fake.replicas(), Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn who_is_bound_to_a_busy_replica_waits_for_it_while_others_are_free() {
    let rig = Rig::new(only_ssd(marked(config(2, 0, 1, 10), &[], &["ssd", "hdd"])));
    let results = join_all((0..3).map(|_| rig.get())).await;
    assert!(results.into_iter().all(|result| kind(result).is_none()));
    assert_eq!(rig.fake.replicas(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_not_ended_for_a_replica_that_may_not_serve_it() {
    let mut config = only_ssd(marked(config(2, 0, 10, 10), &[], &["ssd", "hdd"]));
    config.health_check.interval = Span::secs(1);
    let rig = Rig::new(config);
    rig.fake.mood(0, HANGS);
    rig.start();
    // It times out in place of being ended, although the other replica is well.
    assert_eq!(kind(rig.get().await), Some(FailureKind::UpstreamTimeout));
    assert_eq!(rig.healthy(), [false, true]);
}

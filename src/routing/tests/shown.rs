//! What people are shown of replicas: times, what went wrong last, and a count of each change.

use super::*;
use crate::config::upstreams::BalancePolicy;
use crate::routing::control::{LastError, ReplicaStatus};

impl Rig {
    /// What is shown of the only replica, or the first.
    fn shown(&self) -> ReplicaStatus {
        self.status().replicas.remove(0)
    }

    fn last_error(&self) -> LastError {
        self.shown().last_error.expect("something went wrong")
    }

    /// A counter by the value of one of its labels.
    pub(super) fn counted(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metrics = family.get_metric().iter();
        metrics
            .filter(|metric| metric.get_label().iter().any(|pair| pair.value() == label))
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }
}

#[tokio::test(start_paused = true)]
async fn the_times_to_the_first_byte_are_those_of_the_last_minute() {
    let rig = Rig::new(config(1, 0, 10, 10));
    assert_eq!(rig.shown().first_byte, None);
    for _ in 0..95 {
        rig.get().await.unwrap();
    }
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(400)));
    for _ in 0..5 {
        rig.get().await.unwrap();
    }
    // That is quick, and no answer that anybody waits for.
    rig.fake.mood(0, Mood::Says(503));
    rig.get().await.unwrap();
    let times = rig.shown().first_byte.unwrap();
    assert_eq!(times.answers, 100);
    let near = |told: f64, exact: f64| told >= exact && told <= exact * (1.0 + 1.0 / 64.0) + 2.0;
    assert!(near(times.p50_ms, 1.0) && near(times.p99_ms, 400.0), "{times:?}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.shown().first_byte, None);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_what_the_replica_did_wrong_last() {
    let rig = Rig::new(config(1, 0, 10, 10));
    rig.get().await.unwrap();
    for status in [404, 429, 500] {
        rig.fake.mood(0, Mood::Says(status));
        rig.get().await.unwrap();
    }
    assert_eq!(rig.shown().last_error, None, "nothing of that is its fault");
    for (mood, kind) in [
        (Mood::Refuses, "connect_failed"),
        (Mood::Resets, "reset"),
        (HANGS, "timeout"),
        (Mood::Says(502), "status"),
        (Mood::Says(503), "status"),
        (Mood::Says(504), "status"),
    ] {
        rig.fake.mood(0, mood);
        let _ = rig.send("/secret/path?7", &[], None).await;
        let error = rig.last_error();
        assert_eq!((error.kind, error.seconds_ago), (kind, 0), "{mood:?}");
        if let Mood::Says(status) = mood {
            let begins = format!("the answer is {status} ");
            assert!(error.detail.starts_with(&begins), "{error:?}");
        }
        assert!(!error.detail.contains("secret"), "{error:?}");
        sleep(Duration::from_secs(90)).await;
        assert_eq!(rig.last_error().seconds_ago, 90);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_an_error_and_a_client_that_leaves_is_none() {
    let rig = Rig::new(config(1, 0, 10, 10));
    let broken = Some(FailureKind::UpstreamReset);
    rig.fake.mood(0, Mood::Streams(Duration::from_secs(7), broken));
    drop(rig.get().await.unwrap());
    assert_eq!(rig.shown().last_error, None);
    let answer = rig.get().await.unwrap();
    http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap_err();
    assert_eq!(rig.last_error().kind, "reset");
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_is_an_error_and_each_change_of_health_is_counted_once() {
    const CHANGES: &str = "dify_edge_replica_transitions_total";
    let rig = Rig::new(config(1, 0, 10, 10));
    // They are there before anything happens.
    for to in ["healthy", "unhealthy", "new_addresses"] {
        assert_eq!(rig.counted(CHANGES, to), 0.0);
    }
    rig.fake.mood(0, Mood::Says(500));
    rig.start();
    while rig.healthy()[0] {
        sleep(Duration::from_millis(10)).await;
    }
    let error = rig.last_error();
    assert_eq!(
        (error.kind, &*error.detail),
        ("probe", "the answer is 500 Internal Server Error")
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(
        (rig.counted(CHANGES, "unhealthy"), rig.counted(CHANGES, "healthy")),
        (1.0, 0.0)
    );
    rig.fake.mood(0, QUICK);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(
        (rig.counted(CHANGES, "unhealthy"), rig.counted(CHANGES, "healthy")),
        (1.0, 1.0)
    );
}

#[tokio::test(start_paused = true)]
async fn new_addresses_are_counted_once_each() {
    const CHANGES: &str = "dify_edge_replica_transitions_total";
    let mut named = config(1, 0, 10, 10);
    named.replicas[0].url = "http://api:5001".into();
    let rig = Rig::new(named);
    *rig.names.answer.lock() = Some(vec!["10.0.0.1:5001".parse().unwrap()]);
    rig.start();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.counted(CHANGES, "new_addresses"), 1.0);
    *rig.names.answer.lock() = Some(vec!["10.0.0.2:5001".parse().unwrap()]);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.counted(CHANGES, "new_addresses"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn the_policy_and_the_threshold_of_the_variance_are_shown() {
    let mut config = config(1, 0, 10, 10);
    config.balance.policy = BalancePolicy::LeastLoaded;
    let status = Rig::new(config).status();
    assert_eq!(
        (status.policy, status.load_variance_threshold),
        (BalancePolicy::LeastLoaded, 50.0)
    );
}

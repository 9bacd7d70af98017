//! Replicas that take requests and never answer.
//!
//! They are found by probes that follow a failed one, or a request without answer, at once; then the reads
//! that wait for them are ended, and nothing else is.

use http::Method;

use super::*;
use crate::config::upstreams::HealthCheckConfig;

const FROZEN: Mood = Mood::TimesOut(Duration::from_secs(3600));

/// `count` replicas and `standby` ones that are never probed of themselves.
fn unprobed(count: usize, standby: usize) -> UpstreamConfig {
    UpstreamConfig {
        health_check: HealthCheckConfig {
            interval: Span::secs(1_000_000),
            ..Default::default()
        },
        ..config(count, standby, 10, 10)
    }
}

fn request(method: Method, body: &'static str) -> Request<Body> {
    let body = match body {
        "" => Body::Empty,
        text => Body::from(Bytes::from_static(text.as_bytes())),
    };
    Request::builder().method(method).body(body).unwrap()
}

/// Seconds until replica 0 is unhealthy, counted in steps of 10 ms.
async fn until_out(rig: &Rig) -> f64 {
    for step in 0..10_000 {
        if !rig.healthy()[0] {
            return f64::from(step) / 100.0;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("replica 0 is never found");
}

async fn probes_within(rig: &Rig, seconds: u64) -> usize {
    let before = rig.fake.probes.load(Ordering::SeqCst);
    sleep(Duration::from_secs(seconds)).await;
    rig.fake.probes.load(Ordering::SeqCst) - before
}

/// Puts `replica` out by failures.
fn put_out(rig: &Rig, replica: usize) {
    for _ in 0..3 {
        rig.learn(replica, Event::ProbeFailed);
    }
    assert!(!rig.healthy()[replica]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_is_followed_by_the_next_at_once_until_the_replica_is_out() {
    let rig = Rig::new(config(1, 0, 10, 10));
    rig.fake.mood(0, FROZEN);
    rig.start();
    while rig.fake.probes.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let found = until_out(&rig).await;
    assert!((3.0..3.5).contains(&found), "{found}");
    // One second of waiting each, no pause: the time between two is the same as their limit.
    assert!((8..=11).contains(&probes_within(&rig, 10).await));
    rig.fake.mood(0, QUICK);
    sleep(Duration::from_millis(3_100)).await;
    assert_eq!(rig.healthy(), [true]);
    assert!(probes_within(&rig, 50).await <= 11);
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_probes_alone_fail_is_not_probed_without_end() {
    let rig = Rig::new(config(1, 0, 10, 10));
    rig.start();
    sleep(Duration::from_secs(6)).await;
    rig.fake.mood(0, Mood::Refuses);
    let good = async {
        loop {
            rig.learn(0, Event::RequestOk);
            sleep(Duration::from_millis(10)).await;
        }
    };
    let probes = tokio::select! {
        () = good => 0,
        probes = probes_within(&rig, 50) => probes,
    };
    assert_eq!(rig.healthy(), [true]);
    assert!((27..=33).contains(&probes), "{probes}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_silent_since_the_request_that_waits_for_it_was_begun_not_since_its_probes_fail() {
    let rig = Rig::new(unprobed(1, 1));
    rig.fake.mood(0, FROZEN);
    rig.start();
    let began = Clock::System.now().monotonic;
    let read = rig.send_request(request(Method::GET, ""), &[], Some(Duration::from_secs(30)));
    assert!(read.await.unwrap_err().replica_unhealthy);
    assert_eq!(rig.healthy(), [false, true]);
    assert!(Clock::System.now().monotonic - began > Duration::from_secs(4));
    assert_eq!(rig.replica(0).silent_since(), Some(began));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_answer_calls_a_probe_after_a_second_or_half_its_time() {
    for (total, probed) in [(None, 1_000), (Some(5_000), 1_000), (Some(1_500), 750)] {
        let rig = Rig::new(unprobed(1, 0));
        rig.fake.mood(0, FROZEN);
        rig.start();
        let read = rig.send_request(request(Method::GET, ""), &[], total.map(Duration::from_millis));
        let seen = async {
            sleep(Duration::from_millis(probed - 10)).await;
            let before = rig.fake.probes.load(Ordering::SeqCst);
            sleep(Duration::from_millis(20)).await;
            (before, rig.fake.probes.load(Ordering::SeqCst))
        };
        tokio::select! {
            _ = read => panic!("an answer"),
            seen = seen => assert_eq!(seen, (0, 1), "{total:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_requests_without_answer_call_no_more_than_one_probe_at_a_time() {
    let rig = Rig::new(unprobed(1, 0));
    // Slow but well: probes are answered, after 900 ms.
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(900)));
    rig.start();
    let suspicions = async {
        loop {
            rig.replica(0).probe_soon.notify_one();
            sleep(Duration::from_millis(10)).await;
        }
    };
    let probes = tokio::select! {
        () = suspicions => 0,
        probes = probes_within(&rig, 9) => probes,
    };
    assert!((8..=11).contains(&probes), "{probes}");
    assert_eq!(rig.healthy(), [true]);
}

#[tokio::test(start_paused = true)]
async fn reads_that_wait_for_a_frozen_replica_are_ended_within_their_time_and_counted_once() {
    let rig = Rig::new(unprobed(2, 0));
    rig.fake.mood(0, FROZEN);
    rig.start();
    let start = Clock::System.now().monotonic;
    let (ended, place) = rig
        .place(page(), &[], Some(Duration::from_secs(5)), Placing::Queue)
        .await;
    let ended = ended.unwrap_err();
    let waited = Clock::System.now().monotonic - start;
    assert!(waited < Duration::from_millis(4_300), "{waited:?}");
    assert_eq!((place, ended.replica_unhealthy), (Some(0), true));
    assert_eq!(ended.failure.kind, FailureKind::UpstreamTimeout);
    let replica = &rig.status().replicas[0];
    assert_eq!((replica.consecutive_failures, replica.in_flight), (3, 0));
    let families = rig.registry.gather();
    let dispatches = families
        .iter()
        .find(|f| f.name() == "dify_edge_upstream_dispatch_total")
        .unwrap();
    let counted: Vec<_> = dispatches
        .get_metric()
        .iter()
        .filter(|m| m.get_counter().get_value() > 0.0)
        .flat_map(|m| m.get_label())
        .filter(|label| label.name() == "result")
        .map(|label| label.value().to_owned())
        .collect();
    assert_eq!(counted, ["replica_unhealthy"]);
    rig.send("/", &[0], Some(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn writes_and_reads_whose_body_is_gone_are_left_waiting() {
    for (method, body, ends) in [
        (Method::GET, "", true),
        (Method::HEAD, "", true),
        (Method::GET, "{}", false),
        (Method::POST, "", false),
        (Method::POST, "{}", false),
        (Method::DELETE, "", false),
    ] {
        let rig = Rig::new(unprobed(2, 0));
        rig.fake.mood(0, FROZEN);
        let mut waiting = Box::pin(rig.send_request(request(method.clone(), body), &[], None));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        put_out(&rig, 0);
        let ended = tokio::time::timeout(Duration::from_secs(60), &mut waiting).await;
        assert_eq!(ended.is_ok(), ends, "{method} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_is_left_waiting_until_a_replica_that_did_not_fail_it_can_serve() {
    let rig = Rig::new(unprobed(3, 1));
    for replica in [0, 1, 3] {
        put_out(&rig, replica);
    }
    rig.fake.mood(2, FROZEN);
    // Replica 2 serves; replica 0 failed this fetch.
    let mut waiting = Box::pin(rig.send("/", &[0], None));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(rig.fake.replicas(), [2]);
    put_out(&rig, 2);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let back = |replica| {
        for _ in 0..2 {
            rig.learn(replica, Event::ProbeOk);
        }
    };
    back(0);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    // A standby replica is enough.
    back(3);
    let ended = tokio::time::timeout(Duration::from_secs(1), waiting).await;
    assert!(ended.unwrap().is_err_and(|failed| failed.replica_unhealthy));
}

#[tokio::test(start_paused = true)]
async fn a_lone_replica_that_answers_late_is_waited_for() {
    let rig = Rig::new(unprobed(1, 0));
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(20)));
    rig.start();
    rig.send("/", &[], Some(30)).await.unwrap();
    assert_eq!(rig.healthy(), [false]);
}

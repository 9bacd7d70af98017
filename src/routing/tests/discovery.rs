//! Replicas come and go by name.
//!
//! What a reading finds is set by the test; the real DNS is asked in the tests from outside.

use futures_util::FutureExt as _;

use super::*;
use crate::config::upstreams::DiscoveryConfig;
use crate::routing::discovery::{self, Found};

const EVENTS: &str = "dify_edge_upstream_discovery_total";

/// What the next reading finds, and how often it was read.
#[derive(Clone)]
struct Names(Arc<Mutex<Result<Found, String>>>, Arc<AtomicUsize>);

impl Names {
    fn say(&self, hosts: &[u8], ttl: u64) {
        let replicas = hosts.iter().map(|n| (format!("http://10.0.9.{n}:80"), false));
        *self.0.lock() = Ok(Found {
            replicas: replicas.collect(),
            ttl: Duration::from_secs(ttl),
        });
    }

    fn fail(&self) {
        *self.0.lock() = Err("no answer".into());
    }

    fn readings(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

/// `fixed` replicas of the configuration, and those that are found.
fn found(fixed: usize) -> (Rig, Names) {
    let rig = Rig::new(config(fixed, 0, 2, 10));
    rig.fake.moods.lock().resize(300, QUICK);
    let names = Names(Arc::new(Mutex::new(Err("not yet".into()))), Arc::default());
    let (control, read) = (rig.control.clone(), names.clone());
    let config = DiscoveryConfig {
        zone: Some("a".into()),
        ..DiscoveryConfig::default()
    };
    rig.tracker
        .spawn(rig.token.clone().run_until_cancelled_owned(async move {
            let read = || {
                read.1.fetch_add(1, Ordering::SeqCst);
                let answer = read.0.lock().clone();
                async { answer }.boxed()
            };
            discovery::keep(&control.pools[0], &control.blueprints[0], &config, read, |_| {}).await;
        }));
    (rig, names)
}

/// Time for one reading more, whatever the TTL.
async fn read_again() {
    sleep(Duration::from_secs(6)).await;
}

fn urls(rig: &Rig) -> Vec<String> {
    rig.status()
        .replicas
        .into_iter()
        .map(|replica| replica.url)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn who_is_named_serves_and_who_is_not_any_more_does_not() {
    let (rig, names) = found(0);
    let refused = rig.get().await.unwrap_err().failure;
    assert_eq!(
        (refused.kind, refused.retry_after),
        (FailureKind::NoReplica, None)
    );
    names.say(&[1, 2], 60);
    read_again().await;
    assert_eq!(urls(&rig), ["http://10.0.9.1:80", "http://10.0.9.2:80"]);
    assert_eq!(rig.status().replicas[0].zone.as_deref(), Some("a"));
    for _ in 0..4 {
        rig.get().await.unwrap();
    }
    assert_eq!(rig.fake.replicas(), [0, 1, 0, 1]);
    names.say(&[2, 3], 60);
    read_again().await;
    read_again().await;
    assert_eq!(
        urls(&rig),
        ["http://10.0.9.3:80", "http://10.0.9.2:80"],
        "the free place is used"
    );
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&rig.registry.gather())
        .unwrap();
    assert!(text.contains("10.0.9.3") && !text.contains("10.0.9.1"), "{text}");
    for (event, times) in [
        ("appeared", 3.0),
        ("leaves", 1.0),
        ("left", 1.0),
        ("returned", 0.0),
    ] {
        assert_eq!(rig.counted(EVENTS, event), times, "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_ends_what_it_has_begun_and_gets_nothing_new() {
    let (rig, names) = found(0);
    names.say(&[1, 2], 1);
    read_again().await;
    // One request each, which lasts.
    for place in [0, 1] {
        rig.fake.mood(place, Mood::Answers(Duration::from_secs(600)));
    }
    let ask = || {
        let mut asking = Box::pin(rig.send("/", &[], None));
        assert!((&mut asking).now_or_never().is_none());
        asking
    };
    let held = [ask(), ask()];
    names.say(&[2], 1);
    read_again().await;
    let leaving = &rig.status().replicas[0];
    assert_eq!((leaving.leaving, leaving.in_flight), (true, 1));
    let (more, waiting) = (ask(), ask());
    assert_eq!(
        rig.fake.replicas(),
        [0, 1, 1],
        "both slots of the one that stays are in use"
    );
    rig.fake.mood(0, QUICK);
    // It is named again while it drains: it goes on, slowly.
    names.say(&[1, 2], 1);
    read_again().await;
    waiting.await.unwrap();
    let back = rig.status().replicas.remove(0);
    assert!(!back.leaving && back.score_parts.start < 0.5, "{back:?}");
    assert_eq!(rig.counted(EVENTS, "returned"), 1.0);
    names.say(&[2], 1);
    read_again().await;
    drop((held, more));
    read_again().await;
    assert_eq!(urls(&rig), ["http://10.0.9.2:80"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_appears_starts_slowly_but_not_when_all_are_new() {
    let (rig, names) = found(0);
    names.say(&[1], 1);
    read_again().await;
    assert_eq!(rig.status().replicas[0].score_parts.start, 1.0);
    names.say(&[1, 2], 1);
    sleep(Duration::from_secs(1)).await;
    let start = |rig: &Rig| rig.status().replicas[1].score_parts.start;
    assert!(start(&rig) < 0.2, "{}", start(&rig));
    sleep(Duration::from_secs(40)).await;
    assert_eq!(start(&rig), 1.0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_names_nobody_or_far_too_many_changes_nothing() {
    let (rig, names) = found(1);
    names.say(&[1, 2], 1);
    read_again().await;
    let before = urls(&rig);
    names.fail();
    read_again().await;
    assert_eq!(urls(&rig), before);
    names.say(&[], 1);
    read_again().await;
    assert_eq!(urls(&rig), before);
    let many = (0..257)
        .map(|n| (format!("http://10.1.0.1:{}", n + 1), false))
        .collect();
    *names.0.lock() = Ok(Found {
        replicas: many,
        ttl: Duration::ZERO,
    });
    read_again().await;
    assert_eq!(urls(&rig), before);
    names.say(&[3], 1);
    read_again().await;
    read_again().await;
    assert_eq!(
        urls(&rig),
        ["http://10.0.0.0:80", "http://10.0.9.3:80"],
        "that of the configuration stays"
    );
    // From the first answer that was none to the first that was one again.
    for event in ["failed", "recovered"] {
        assert_eq!(rig.counted(EVENTS, event), 1.0, "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_read_again_when_their_ttl_ends_or_the_refresh_comes_and_soon_after_a_failure() {
    let (_rig, names) = found(0);
    let within = async |seconds| {
        let before = names.readings();
        sleep(Duration::from_secs(seconds)).await;
        names.readings() - before
    };
    names.say(&[1], 3);
    read_again().await;
    assert_eq!(within(30).await, 10, "by the TTL");
    names.say(&[1], 3600);
    within(6).await;
    assert_eq!(within(30).await, 6, "by the refresh of 5 s");
    names.say(&[1], 0);
    within(6).await;
    assert_eq!(within(30).await, 30, "once a second at most");
    names.fail();
    within(6).await;
    assert_eq!(within(30).await, 30, "a failure");
}

#[tokio::test(start_paused = true)]
async fn what_runs_beside_requests_ends_with_the_replica() {
    let (rig, names) = found(0);
    names.say(&[1, 2], 1);
    read_again().await;
    let gone = rig.replica(0);
    names.say(&[2], 1);
    read_again().await;
    assert!(gone.stop.is_cancelled() && !rig.replica(1).stop.is_cancelled());
}

//! Replicas that answer their probes and fail their requests.
//!
//! The health of all is out of the way: it would take these replicas out first.

use http_body_util::BodyExt;

use super::*;
use crate::routing::control::BreakerState;

const BROKEN: Mood = Mood::Says(503);

/// `count` replicas and `standby` ones that are never found unhealthy, with breakers as they are by default.
fn rig(count: usize, standby: usize, slots: usize) -> Rig {
    let mut config = config(count, standby, slots, 10);
    config.health_check.unhealthy_after = 1_000;
    Rig::with_breakers(config, &BreakerConfig::default())
}

impl Rig {
    fn breakers(&self) -> Vec<BreakerState> {
        let replicas = self.status().replicas;
        replicas.iter().map(|replica| replica.breaker).collect()
    }

    /// One request whose answer is read to its end.
    async fn read(&self) -> Result<(), Failure> {
        let response = self.get().await.map_err(|failed| failed.failure)?;
        response.into_body().collect().await.map(drop)
    }

    /// Has `replica` fail twenty requests.
    async fn trip(&self, replica: usize) {
        self.fake.mood(replica, BROKEN);
        let others: Vec<_> = (0..self.status().replicas.len())
            .filter(|r| *r != replica)
            .collect();
        for _ in 0..20 {
            assert_eq!(self.breakers()[replica], BreakerState::Closed);
            self.send("/", &others, None).await.unwrap();
        }
        assert_eq!(self.breakers()[replica], BreakerState::Open);
        self.fake.replicas();
    }
}

/// Seconds until it makes sense to come again, as a refusal says.
fn refusal(failed: Result<(), Failure>) -> Option<u16> {
    let failure = failed.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoReplica);
    failure.retry_after
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_fails_too_often_is_not_asked_while_others_are() {
    let rig = rig(2, 0, 10);
    rig.trip(0).await;
    let status = rig.status();
    assert_eq!(status.replicas[0].half_open_in_ms, Some(30_000));
    assert_eq!(status.replicas[1].half_open_in_ms, None);
    sleep(Duration::from_millis(29_000)).await;
    for _ in 0..10 {
        rig.get().await.unwrap();
    }
    // Not even by those that the other has failed.
    rig.send("/", &[1], None).await.unwrap();
    assert_eq!(rig.fake.replicas(), [1; 11]);
    assert_eq!(rig.status().replicas[0].half_open_in_ms, Some(1_000 - 11));
}

#[tokio::test(start_paused = true)]
async fn with_all_open_requests_are_refused_at_once_and_told_when_to_come_again() {
    let rig = rig(2, 0, 10);
    rig.trip(0).await;
    sleep(Duration::from_millis(9_500)).await;
    rig.trip(1).await;
    let start = Clock::System.now().monotonic;
    // The first of the two, not the last.
    assert_eq!(refusal(rig.read().await), Some(21));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(refusal(rig.read().await), Some(1));
    assert_eq!((Clock::System.now().monotonic - start).as_secs(), 20);
    assert_eq!(rig.fake.replicas().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_trial_at_a_time_is_let_in_and_three_that_succeed_close_it() {
    let rig = rig(1, 0, 10);
    rig.trip(0).await;
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(1)));
    sleep(Duration::from_secs(30)).await;
    for round in 1..=3 {
        let (trial, second, third) = tokio::join!(rig.read(), rig.read(), rig.read());
        trial.unwrap();
        assert_eq!([refusal(second), refusal(third)], [Some(1), Some(1)]);
        assert_eq!(rig.fake.replicas(), [0]);
        let state = if round == 3 {
            BreakerState::Closed
        } else {
            BreakerState::HalfOpen
        };
        assert_eq!(rig.breakers(), [state]);
        assert_eq!(rig.metric("dify_edge_breaker_state"), f64::from(state as u8));
    }
    let (first, second) = tokio::join!(rig.read(), rig.read());
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(rig.metric("dify_edge_breaker_transitions_total"), 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_opens_it_for_twice_the_time() {
    let rig = rig(1, 0, 10);
    rig.trip(0).await;
    for wait in [60, 120] {
        sleep(Duration::from_secs(300)).await;
        rig.fake.mood(0, Mood::Refuses);
        rig.read().await.unwrap_err();
        assert_eq!(rig.metric("dify_edge_breaker_state"), 2.0);
        assert_eq!(refusal(rig.read().await), Some(wait));
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_serves_while_the_others_are_open_unless_it_is_unhealthy() {
    let rig = rig(2, 1, 10);
    rig.trip(0).await;
    rig.trip(1).await;
    rig.get().await.unwrap();
    assert_eq!(rig.fake.replicas(), [2]);
    for _ in 0..1_000 {
        rig.learn(2, Event::ProbeFailed);
    }
    assert_eq!(refusal(rig.read().await), Some(30));
    assert_eq!(rig.fake.replicas().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_in_line_are_refused_as_soon_as_nobody_is_let_in() {
    let rig = rig(1, 0, 1);
    rig.fake.mood(0, BROKEN);
    for _ in 0..19 {
        rig.get().await.unwrap();
    }
    rig.fake.mood(
        0,
        Mood::Streams(Duration::from_secs(3), Some(FailureKind::UpstreamReset)),
    );
    let stream = rig.get().await.unwrap().into_body();
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(3600)));
    let start = Clock::System.now().monotonic;
    let mut endless = Box::pin(rig.send("/", &[], None));
    assert!(futures_util::poll!(&mut endless).is_pending());
    let (broken, first, second) = tokio::join!(stream.collect(), rig.read(), rig.read());
    assert!(broken.is_err());
    assert_eq!([refusal(first), refusal(second)], [Some(30), Some(30)]);
    assert_eq!((Clock::System.now().monotonic - start).as_secs(), 3);
    assert_eq!(rig.status().lanes[0].queue, 0);
}

#[tokio::test(start_paused = true)]
async fn one_in_line_for_a_busy_replica_is_the_trial_of_another_once_that_is_half_open() {
    let rig = rig(2, 0, 1);
    rig.trip(0).await;
    rig.fake.mood(0, QUICK);
    rig.fake.mood(1, Mood::Answers(Duration::from_secs(3600)));
    let mut endless = Box::pin(rig.send("/", &[], None));
    assert!(futures_util::poll!(&mut endless).is_pending());
    // Only probes look whether the time has come.
    rig.start();
    let start = Clock::System.now().monotonic;
    rig.send("/", &[], Some(60)).await.unwrap();
    let waited = Clock::System.now().monotonic - start;
    assert!(waited <= Duration::from_secs(36), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_how_the_whole_exchange_ends() {
    let second = Duration::from_secs(1);
    let at_once = Duration::ZERO;
    for (mood, opens) in [
        (Mood::Refuses, true),
        (Mood::Resets, true),
        (Mood::TimesOut(second), true),
        (Mood::Says(502), true),
        (Mood::Says(503), true),
        (Mood::Says(504), true),
        (Mood::Says(500), false),
        (Mood::Says(501), false),
        (Mood::Says(429), false),
        (Mood::Says(404), false),
        (Mood::Says(400), false),
        (Mood::Streams(second, None), false),
        (Mood::Streams(second, Some(FailureKind::UpstreamReset)), true),
        (Mood::Streams(second, Some(FailureKind::UpstreamTimeout)), true),
        // Nobody waited for the replica: the client read slowly, or the time went in the queue.
        (Mood::Streams(at_once, Some(FailureKind::UpstreamTimeout)), false),
        (Mood::TimesOut(Duration::from_millis(10)), false),
        (Mood::Streams(second, Some(FailureKind::ClientGone)), false),
    ] {
        let rig = rig(1, 0, 10);
        rig.fake.mood(0, mood);
        for number in 0..20 {
            assert_eq!(rig.breakers(), [BreakerState::Closed], "{mood:?} {number}");
            let _ = rig.read().await;
        }
        let expected = if opens {
            BreakerState::Open
        } else {
            BreakerState::Closed
        };
        assert_eq!(rig.breakers(), [expected], "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_500_counts_where_that_is_configured_and_nothing_does_where_it_is_off() {
    for (count_500, enabled, opens) in [(true, true, true), (true, false, false)] {
        let breaker = BreakerConfig {
            enabled,
            count_500,
            ..BreakerConfig::default()
        };
        let rig = Rig::with_breakers(config(1, 0, 10, 10), &breaker);
        rig.fake.mood(0, Mood::Says(500));
        for _ in 0..20 {
            rig.read().await.unwrap();
        }
        assert_eq!(rig.read().await.is_err(), opens, "{breaker:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_counts_at_its_end_not_at_its_head() {
    let rig = rig(1, 0, 100);
    rig.fake.mood(
        0,
        Mood::Streams(Duration::from_secs(1), Some(FailureKind::UpstreamReset)),
    );
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(rig.get().await.unwrap());
    }
    rig.fake.mood(0, QUICK);
    for _ in 0..19 {
        rig.get().await.unwrap();
    }
    // Had the heads counted as successes, twenty failures would be too few.
    for (number, stream) in (1..).zip(streams) {
        assert_eq!(
            rig.breakers()[0],
            if number < 20 {
                BreakerState::Closed
            } else {
                BreakerState::Open
            }
        );
        assert!(stream.into_body().collect().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_counts_for_nothing_and_gives_its_trial_back() {
    let rig = rig(1, 0, 100);
    let leave = async |mood| {
        rig.fake.mood(0, mood);
        let wait = Duration::from_millis(1_500);
        tokio::time::timeout(wait, rig.read()).await.unwrap_err();
    };
    let late = Mood::Answers(Duration::from_secs(2));
    let breaks = Mood::Streams(Duration::from_secs(2), Some(FailureKind::UpstreamReset));
    for mood in [late, breaks].repeat(20) {
        leave(mood).await;
    }
    assert_eq!(rig.breakers(), [BreakerState::Closed]);
    rig.trip(0).await;
    sleep(Duration::from_secs(30)).await;
    for mood in [late, breaks].repeat(4) {
        leave(mood).await;
        assert_eq!(rig.breakers(), [BreakerState::HalfOpen]);
    }
    rig.fake.mood(0, QUICK);
    for _ in 0..3 {
        rig.read().await.unwrap();
    }
    assert_eq!(rig.breakers(), [BreakerState::Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_not_ended_for_the_sake_of_a_replica_that_lets_nobody_in() {
    let rig = rig(2, 0, 10);
    rig.trip(1).await;
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(3)));
    let mut read = Box::pin(rig.get());
    assert!(futures_util::poll!(&mut read).is_pending());
    for _ in 0..1_000 {
        rig.learn(0, Event::ProbeFailed);
    }
    assert_eq!(rig.healthy(), [false, true]);
    read.await.unwrap();
}

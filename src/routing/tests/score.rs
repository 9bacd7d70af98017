//! Scores as requests and probes make them, and what balancing by them does.

use http_body_util::BodyExt;

use super::*;
use crate::config::upstreams::BalancePolicy;

fn by_health(count: usize) -> Rig {
    let mut config = config(count, 0, 10, 10);
    config.balance.policy = BalancePolicy::WeightedHealth;
    Rig::new(config)
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_gets_little_by_health_and_its_score_says_why() {
    let rig = by_health(3);
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(50)));
    for _ in 0..200 {
        rig.get().await.unwrap();
    }
    let taken = rig
        .fake
        .replicas()
        .iter()
        .filter(|replica| **replica == 0)
        .count();
    // Until the usual time is known, which may begin with the slow one's, it has its turns: a third of 200 in all.
    assert!((1..40).contains(&taken), "{taken}");
    let [slow, quick, _] = rig.status().replicas.try_into().unwrap();
    // Once it is worth less than the others it is not asked while they are free.
    assert!(slow.score < 0.5 && slow.score_parts.slowness < 0.5, "{slow:?}");
    assert!(quick.score > 0.9, "{quick:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_and_probes_bring_a_score_down_and_a_replica_that_is_back_starts_slowly() {
    let rig = by_health(1);
    rig.get().await.unwrap();
    assert_eq!(rig.status().replicas[0].score, 1.0);
    rig.fake.mood(0, Mood::Refuses);
    rig.get().await.unwrap_err();
    assert!(rig.status().replicas[0].score_parts.errors < 0.5);
    rig.start();
    sleep(Duration::from_secs(10)).await;
    let out = rig.status().replicas.remove(0);
    assert!(!out.healthy && out.score_parts.probe < 0.1, "{out:?}");
    // The metric is a second old at most, and nothing has changed since but by forgetting.
    assert!((rig.metric("dify_edge_upstream_score") - out.score).abs() < 0.05);
    rig.fake.mood(0, QUICK);
    while !rig.healthy()[0] {
        sleep(Duration::from_millis(10)).await;
    }
    let back = rig.status().replicas.remove(0);
    assert!(
        back.score_parts.start < 0.2 && back.score_parts.probe == 1.0,
        "{back:?}"
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(rig.status().replicas[0].score, 1.0);
}

#[tokio::test(start_paused = true)]
async fn routes_that_take_longer_than_others_of_their_class_leave_scores_as_they_are() {
    let mut config = config(4, 0, 10, 10);
    config.balance.policy = BalancePolicy::WeightedHealth;
    for (place, replica) in config.replicas.iter_mut().enumerate() {
        replica.zone = Some(["home", "away"][place % 2].to_owned());
    }
    let rig = Rig::build(config, &BreakerConfig::default(), Some("home"));
    (0..4).for_each(|place| rig.fake.mood(place, Mood::Answers(Duration::from_millis(20))));
    let mut least = 1.0_f64;
    for number in 0..300 {
        // One in three, in no order that anybody follows.
        let path = if number * number % 7 < 2 { "/heavy" } else { "/" };
        rig.send(path, &[], Some(5)).await.unwrap();
        let scores = rig.status().replicas.into_iter().map(|it| it.score);
        least = scores.fold(least, f64::min);
    }
    assert!(least > 0.9, "{least}");
    assert!(
        rig.fake.replicas().iter().all(|replica| replica % 2 == 0),
        "none left its zone"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_that_break_off_bring_a_score_down() {
    let rig = by_health(1);
    let second = Duration::from_secs(1);
    rig.fake
        .mood(0, Mood::Streams(second, Some(FailureKind::UpstreamReset)));
    for _ in 0..10 {
        let response = rig.get().await.unwrap();
        assert!(response.into_body().collect().await.is_err());
    }
    let broken = rig.status().replicas.remove(0);
    assert!(broken.score_parts.errors < 0.2, "{broken:?}");
}

#[tokio::test(start_paused = true)]
async fn the_variance_of_loads_is_that_of_the_slots_in_use() {
    let rig = Rig::new(config(2, 1, 10, 10));
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(9)));
    rig.start();
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(rig.send("/", &[1], None))).collect();
    for request in &mut waiting {
        assert!(futures_util::poll!(request).is_pending());
    }
    // 40 % and 0 %: each is 20 from the mean.
    assert_eq!(rig.status().load_variance, 400.0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.metric("dify_edge_upstream_load_variance"), 400.0);
    assert_eq!(rig.metric("dify_edge_upstream_load_variance_threshold"), 50.0);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_out_has_no_load_that_others_could_differ_from() {
    let rig = Arc::new(Rig::new(config(2, 0, 10, 10)));
    for _ in 0..3 {
        rig.learn(0, Event::ProbeFailed);
    }
    let asking = rig.clone();
    let stream = tokio::spawn(async move { asking.send("/generation", &[], None).await });
    tokio::task::yield_now().await;
    let status = rig.status();
    assert_eq!(status.replicas[1].in_flight, 1);
    assert_eq!(status.load_variance, 0.0);
    stream.abort();
}

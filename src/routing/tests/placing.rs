//! Attempts that may only have another replica, and at once.

use super::*;

const LIMIT: Option<Duration> = Some(Duration::from_secs(5));

/// The place that such an attempt gets; `None` when it is refused, which it must be at once.
async fn placed(rig: &Rig, avoid: &[usize], placing: Placing) -> Option<usize> {
    let start = Clock::System.now().monotonic;
    let (result, place) = rig.place(page(), avoid, LIMIT, placing).await;
    match place {
        Some(_) => drop(result.unwrap()),
        None => {
            assert_eq!(result.unwrap_err().failure.kind, FailureKind::Overloaded);
            assert_eq!(Clock::System.now().monotonic, start, "it waited");
        }
    }
    place
}

#[tokio::test(start_paused = true)]
async fn one_that_wants_another_replica_never_gets_one_that_it_avoids() {
    let rig = Rig::new(config(2, 0, 10, 10));
    for placing in [Placing::Elsewhere, Placing::Hedge] {
        for _ in 0..4 {
            assert_eq!(placed(&rig, &[0], placing).await, Some(1));
        }
        assert_eq!(placed(&rig, &[0, 1], placing).await, None);
    }
    assert_eq!(rig.fake.served.lock().len(), 8);
    let (any, place) = rig.place(page(), &[0, 1], LIMIT, Placing::Queue).await;
    assert!(any.is_ok() && place.is_some(), "one that waits takes any");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_unhealthy_is_no_other_and_one_on_standby_is_none_for_a_hedge() {
    let rig = Rig::new(config(2, 1, 10, 10));
    for _ in 0..3 {
        rig.learn(1, Event::RequestFailed);
    }
    assert_eq!(rig.healthy(), [true, false, true]);
    assert_eq!(placed(&rig, &[0], Placing::Hedge).await, None);
    assert_eq!(placed(&rig, &[0], Placing::Elsewhere).await, Some(2));
    for _ in 0..3 {
        rig.learn(2, Event::RequestFailed);
    }
    assert_eq!(placed(&rig, &[0], Placing::Elsewhere).await, None);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_overtaken_and_nobody_waits_for_a_slot() {
    let mut config = config(2, 0, 2, 10);
    config.lanes.generation.limit = Ratio(0.5);
    let rig = Rig::new(config);
    (0..2).for_each(|place| rig.fake.mood(place, Mood::Answers(Duration::from_secs(1))));
    let mut streams: Vec<_> = (0..3)
        .map(|_| Box::pin(rig.send("/generation", &[], LIMIT.map(|limit| limit.as_secs()))))
        .collect();
    for stream in &mut streams {
        assert!(futures_util::poll!(stream).is_pending());
    }
    // One slot of each replica is free for a page, and a stream waits in its own lane.
    assert_eq!(placed(&rig, &[0], Placing::Hedge).await, None);
    assert_eq!(placed(&rig, &[0], Placing::Elsewhere).await, Some(1));
    let mut page_there = Box::pin(rig.place(page(), &[0], LIMIT, Placing::Elsewhere));
    assert!(futures_util::poll!(&mut page_there).is_pending());
    assert_eq!(
        placed(&rig, &[0], Placing::Elsewhere).await,
        None,
        "no slot is free"
    );
}

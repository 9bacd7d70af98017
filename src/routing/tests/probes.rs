//! What probes do to replicas, and when they are sent.

use super::*;

#[tokio::test(start_paused = true)]
async fn probes_put_a_replica_out_and_bring_it_back() {
    let rig = Rig::new(config(2, 0, 10, 10));
    rig.fake.mood(1, HANGS);
    rig.start();
    sleep(Duration::from_secs(21)).await;
    assert_eq!(rig.healthy(), [true, false]);
    rig.fake.mood(1, QUICK);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.healthy(), [true, true]);
    rig.token.cancel();
    rig.tracker.close();
    rig.tracker.wait().await;
    let probes = rig.fake.probes.load(Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.fake.probes.load(Ordering::SeqCst), probes);
}

#[tokio::test(start_paused = true)]
async fn probes_need_no_slot_and_a_failed_request_calls_one_at_once_but_not_too_often() {
    let rig = Rig::new(config(1, 0, 1, 1000));
    rig.start();
    sleep(Duration::from_secs(6)).await;
    rig.fake.mood(0, Mood::Refuses);
    let before = rig.fake.probes.load(Ordering::SeqCst);
    for _ in 0..100 {
        rig.get().await.unwrap_err();
        sleep(Duration::from_millis(10)).await;
    }
    let extra = rig.fake.probes.load(Ordering::SeqCst) - before;
    assert!((1..=4).contains(&extra), "{extra}");
    // The only slot is taken for an hour, and still it is probed.
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(3600)));
    let mut endless = Box::pin(rig.send("/", &[], None));
    assert!(futures_util::poll!(&mut endless).is_pending());
    rig.fake.mood(0, QUICK);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.healthy(), [true]);
}

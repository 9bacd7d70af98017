//! Streams leave slots for pages, and nobody waits for what somebody else asks.

use futures_util::future::join_all;

use super::*;

fn lane(rig: &Rig, lane: Lane) -> crate::routing::control::LaneStatus {
    rig.status().lanes.remove(lane as usize)
}

#[tokio::test(start_paused = true)]
async fn streams_leave_slots_for_pages() {
    let rig = Arc::new(Rig::new(config(1, 0, 10, 100)));
    let streams: Vec<_> = (0..40)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.send("/generation", &[], None).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let held = lane(&rig, Lane::Generation);
    assert_eq!((held.in_flight, held.queue, held.slots), (7, 33, 7));
    let start = Clock::System.now().monotonic;
    let pages = (0..3).map(|_| rig.send("/", &[], Some(1)));
    assert!(join_all(pages).await.iter().all(Result::is_ok));
    assert_eq!(
        Clock::System.now().monotonic - start,
        Duration::from_millis(1),
        "none waited"
    );
    // Those that waited for longer than 30 seconds were sent away.
    let served = join_all(streams).await.into_iter().flatten().flatten().count();
    assert_eq!(served, 7);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_grpc_whose_time_passes_in_the_queue_has_exceeded_its_deadline() {
    let rig = Rig::new(config(1, 0, 1, 100));
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(60)));
    let ask = async |kind: &str| {
        let request = Request::post("/").header("content-type", kind);
        let request = request.body(Body::Empty).unwrap();
        rig.send_request(request, &[], Some(Duration::from_secs(1))).await
    };
    let asked = tokio::join!(
        ask("text/plain"),
        ask("application/grpc"),
        ask("application/json")
    );
    assert!(asked.0.is_ok());
    assert_eq!(asked.1.unwrap_err().failure.kind, FailureKind::UpstreamTimeout);
    assert_eq!(asked.2.unwrap_err().failure.kind, FailureKind::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn streams_files_and_fetches_in_the_background_leave_slots_for_pages_together() {
    for (slots, held) in [(10, [7, 1, 0]), (8, [5, 1, 0]), (2, [1, 0, 0]), (1, [1, 0, 0])] {
        let rig = Arc::new(Rig::new(config(1, 0, slots, 100)));
        rig.fake.mood(0, Mood::Answers(Duration::from_secs(60)));
        let lanes = [Lane::Generation, Lane::Upload, Lane::Background];
        let mut waiting = Vec::new();
        for of in lanes {
            for _ in 0..slots {
                let (rig, path) = (rig.clone(), format!("/{}", of.as_str()));
                waiting.push(tokio::spawn(async move { rig.send(&path, &[], None).await }));
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(lanes.map(|of| lane(&rig, of).in_flight), held, "{slots} slots");
        rig.fake.mood(0, QUICK);
        let start = Clock::System.now().monotonic;
        let page = rig.send("/", &[], Some(1)).await;
        assert_eq!(page.is_ok(), slots > 1);
        if slots > 1 {
            assert_eq!(Clock::System.now().monotonic - start, Duration::from_millis(1));
        }
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_allowed_all_slots_has_all_of_them() {
    let mut config = config(1, 0, 10, 100);
    config.lanes.upload.limit = Ratio(1.0);
    let rig = Rig::new(config);
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(10)));
    let mut files: Vec<_> = (0..20)
        .map(|_| Box::pin(rig.send("/upload", &[], None)))
        .collect();
    for file in &mut files {
        assert!(futures_util::poll!(file).is_pending());
    }
    assert_eq!(lane(&rig, Lane::Upload).in_flight, 10);
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_much_waits_for_himself() {
    let rig = Rig::new(config(1, 0, 1, 100));
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(10)));
    let mut targets: Vec<_> = (0..20).map(|number| format!("/{number}?1")).collect();
    targets.push("/other?2".to_owned());
    let requests = targets.iter().map(|target| rig.send(target, &[], None));
    assert!(join_all(requests).await.iter().all(Result::is_ok));
    let served = rig.fake.served.lock();
    let turn = served.iter().position(|(_, target)| target == "/other?2");
    assert!(turn <= Some(2), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn a_free_slot_goes_to_the_lane_that_has_the_least_of_its_share() {
    let mut config = config(1, 0, 10, 100);
    config.lanes.upload.limit = Ratio(1.0);
    let rig = Rig::new(config);
    rig.fake.mood(0, Mood::Answers(Duration::from_secs(10)));
    let targets = ["/upload"; 20].into_iter().chain(["/"; 20]);
    let mut requests: Vec<_> = targets
        .map(|target| Box::pin(rig.send(target, &[], None)))
        .collect();
    for request in &mut requests {
        assert!(futures_util::poll!(request).is_pending());
    }
    assert_eq!(
        lane(&rig, Lane::Upload).in_flight,
        10,
        "all, as nobody else was there"
    );
    tokio::time::advance(Duration::from_secs(10)).await;
    for request in &mut requests {
        let _ = futures_util::poll!(request);
    }
    // 30 % and 20 % of the slots are theirs: as 3 to 2.
    let shares = [Lane::Short, Lane::Upload].map(|of| lane(&rig, of).in_flight);
    assert_eq!(shares, [6, 4]);
}

#[tokio::test(start_paused = true)]
async fn who_has_most_in_a_full_queue_gives_way() {
    let rig = Arc::new(Rig::new(config(1, 0, 1, 3)));
    rig.fake.mood(0, Mood::Answers(Duration::from_millis(10)));
    let ask = |target: &'static str| {
        let rig = rig.clone();
        tokio::spawn(async move { rig.send(target, &[], None).await })
    };
    let many: Vec<_> = ["/0?1", "/1?1", "/2?1", "/3?1"].map(&ask).into();
    tokio::task::yield_now().await;
    let other = ask("/other?2");
    assert!(other.await.unwrap().is_ok());
    let results: Vec<_> = join_all(many).await.into_iter().map(Result::unwrap).collect();
    let shed: Vec<_> = (0..4).filter(|place| results[*place].is_err()).collect();
    assert_eq!(shed, [1], "the first of those who waited");
    assert_eq!(rig.metric("dify_edge_upstream_shed_total"), 1.0);
}

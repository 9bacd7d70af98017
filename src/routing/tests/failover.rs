//! Two clusters: where requests go when one of them fails, and where work is gone on with. Without Redis: one instance
//! decides alone.

use http_body_util::BodyExt as _;
use tokio::time::advance;

use super::*;
use crate::routing::failover::Mode;
use crate::types::cluster::{Begins, Bond, Cluster, Work, WorkKind};

/// A rig with one replica in each cluster: place 0 is the primary's, place 1 the standby's.
fn rig() -> Rig {
    rig_with(|_| {})
}

fn rig_with(change: impl FnOnce(&mut Config)) -> Rig {
    let mut upstream = config(1, 1, 10, 10);
    upstream.health_check.interval = Span::secs(3600);
    let mut config = Config {
        upstreams: Upstreams::from([("api".to_owned(), upstream)]),
        ..Config::default()
    };
    config.circuit_breaker.enabled = false;
    change(&mut config);
    let rig = Rig::of(&config);
    rig.start();
    rig
}

/// The replica at `place` no longer answers, and that is known.
fn dies(rig: &Rig, place: usize) {
    rig.fake.mood(place, Mood::Refuses);
    for _ in 0..3 {
        rig.learn(place, Event::ProbeFailed);
    }
}

fn recovers(rig: &Rig, place: usize) {
    rig.fake.mood(place, QUICK);
    for _ in 0..2 {
        rig.learn(place, Event::ProbeOk);
    }
}

fn post(path: &str) -> Request<Body> {
    Request::post(path).body(Body::Empty).unwrap()
}

async fn write(rig: &Rig) -> Option<usize> {
    let (answer, place) = rig.place(post("/"), &[], None, Placing::Queue).await;
    answer.expect("an answer");
    place
}

async fn read(rig: &Rig) -> Option<usize> {
    let (answer, place) = rig.place(page(), &[], None, Placing::Queue).await;
    answer.expect("an answer");
    place
}

async fn steer(rig: &Rig, mode: Mode) {
    rig.control.steer(Some("api"), mode).await.expect("it is alone");
}

fn active(rig: &Rig) -> (u64, Cluster) {
    let failover = rig.status().failover.expect("there is a standby");
    (failover.epoch.unwrap().0, failover.active)
}

/// What answers of this rig's chats tell.
const BEGINS: &[Begins] = &[
    Begins {
        name: "task_id",
        kind: WorkKind::Task,
    },
    Begins {
        name: "conversation_id",
        kind: WorkKind::Conversation,
    },
];
const TELLING: Mood = Mood::Tells(&[
    "{\"event\": \"message\", \"task",
    "_id\": \"t-1\", \"conversation_id\": \"c-",
    "1\", \"answer\": \"\", \"outputs\": {\"task_id\": \"t-2\"}}",
]);

/// Begins a task and a conversation; where, and what the client got.
async fn chat(rig: &Rig) -> (Option<usize>, String) {
    let works = Works {
        begins: BEGINS,
        ..Works::default()
    };
    let (answer, place) = rig.about(post("/chat"), &[], None, Placing::Queue, works).await;
    let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
    (place, String::from_utf8(body.to_vec()).unwrap())
}

/// A request about work; where it went, or what it was refused with.
async fn about(
    rig: &Rig,
    request: Request<Body>,
    kind: WorkKind,
    id: &str,
    bond: Bond,
) -> Result<usize, Failure> {
    let works = Works {
        about: Some((Work::named(kind, id.as_bytes()), bond)),
        ..Works::default()
    };
    let (answer, place) = rig.about(request, &[], None, Placing::Queue, works).await;
    answer
        .map_err(|failed| failed.failure)
        .map(|_| place.expect("a place"))
}

async fn stop(rig: &Rig, task: &str) -> Result<usize, Failure> {
    about(rig, post("/stop"), WorkKind::Task, task, Bond::Must).await
}

#[tokio::test(start_paused = true)]
async fn reads_go_to_the_other_cluster_at_once_and_writes_wait_until_it_has_them() {
    let rig = rig();
    assert_eq!((write(&rig).await, read(&rig).await), (Some(0), Some(0)));
    dies(&rig, 0);
    let before = Clock::System.now().monotonic;
    assert_eq!(read(&rig).await, Some(1));
    assert!(Clock::System.now().monotonic - before < Duration::from_millis(100));
    assert_eq!(active(&rig), (1, Cluster::Primary));
    // It is held, not refused, and reaches one cluster alone.
    assert_eq!(write(&rig).await, Some(1));
    let waited = Clock::System.now().monotonic - before;
    assert!(
        Duration::from_secs(5) <= waited && waited < Duration::from_secs(6),
        "{waited:?}"
    );
    assert_eq!(active(&rig), (2, Cluster::Standby));
    assert_eq!(rig.metric("dify_edge_failover_shifts_total"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opened_does_not_keep_the_primary_out_for_ever_though_nobody_asks_it_meanwhile() {
    let rig = rig_with(|config| config.circuit_breaker.enabled = true);
    rig.fake.mood(0, Mood::Says(503));
    for _ in 0..20 {
        rig.send("/", &[1], None).await.unwrap();
    }
    sleep(Duration::from_secs(6)).await;
    assert_eq!(active(&rig), (2, Cluster::Standby));
    rig.fake.mood(0, QUICK);
    // Its sleep of 30 s, and then the time for which it has to be well.
    sleep(Duration::from_secs(80)).await;
    assert_eq!(active(&rig), (2, Cluster::Standby));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(active(&rig), (3, Cluster::Primary));
    for _ in 0..3 {
        assert_eq!(write(&rig).await, Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_finds_nobody_waits_even_before_it_is_known_that_its_cluster_is_gone() {
    let rig = rig();
    write(&rig).await;
    rig.fake.mood(0, Mood::Refuses);
    let before = Clock::System.now().monotonic;
    assert_eq!(write(&rig).await, Some(0), "the first place counts");
    assert_eq!(rig.fake.replicas().last(), Some(&1));
    let waited = Clock::System.now().monotonic - before;
    assert!(waited < Duration::from_secs(7), "{waited:?}");
    assert_eq!(active(&rig), (2, Cluster::Standby));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_sent_to_a_cluster_that_goes_is_not_sent_again() {
    let rig = rig();
    rig.fake.mood(0, Mood::Resets);
    let (answer, _) = rig.place(post("/"), &[], None, Placing::Queue).await;
    assert_eq!(answer.unwrap_err().failure.kind, FailureKind::UpstreamReset);
    assert_eq!(rig.fake.replicas(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_comes_back_in_time_keeps_the_writes_that_waited() {
    let rig = Arc::new(rig());
    write(&rig).await;
    dies(&rig, 0);
    let waiting = tokio::spawn({
        let rig = rig.clone();
        async move { write(&rig).await }
    });
    sleep(Duration::from_secs(4)).await;
    assert!(!waiting.is_finished());
    recovers(&rig, 0);
    assert_eq!(waiting.await.unwrap(), Some(0));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(active(&rig), (1, Cluster::Primary));
}

#[tokio::test(start_paused = true)]
async fn the_primary_has_everything_back_after_a_minute_of_health() {
    let rig = rig();
    write(&rig).await;
    dies(&rig, 0);
    assert_eq!(write(&rig).await, Some(1));
    recovers(&rig, 0);
    sleep(Duration::from_secs(58)).await;
    assert_eq!((write(&rig).await, read(&rig).await), (Some(1), Some(1)));
    sleep(Duration::from_secs(4)).await;
    assert_eq!((write(&rig).await, read(&rig).await), (Some(0), Some(0)));
    assert_eq!(active(&rig), (3, Cluster::Primary));
}

#[tokio::test(start_paused = true)]
async fn an_operator_decides_whatever_the_clusters_health() {
    let rig = rig();
    steer(&rig, Mode::Standby).await;
    assert_eq!((write(&rig).await, read(&rig).await), (Some(1), Some(1)));
    sleep(Duration::from_secs(300)).await;
    assert_eq!(write(&rig).await, Some(1));
    steer(&rig, Mode::Auto).await;
    sleep(Duration::from_secs(1)).await;
    // It has been well all along.
    assert_eq!(write(&rig).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn without_a_healthy_cluster_everything_is_tried_where_the_writes_are() {
    let rig = rig();
    write(&rig).await;
    for place in [0, 1] {
        dies(&rig, place);
    }
    let (answer, place) = rig.place(post("/"), &[], None, Placing::Queue).await;
    assert_eq!(answer.unwrap_err().failure.kind, FailureKind::ConnectFailed);
    assert_eq!(place, Some(0));
}

#[tokio::test(start_paused = true)]
async fn work_is_stopped_where_it_was_begun_whoever_has_the_writes() {
    let rig = rig();
    rig.fake.mood(0, TELLING);
    let (place, text) = chat(&rig).await;
    assert_eq!(place, Some(0));
    assert!(text.starts_with("{\"event\": \"message\", \"task_id\": \"t-1\"") && text.ends_with("\"t-2\"}}"));
    rig.fake.mood(0, QUICK);
    steer(&rig, Mode::Standby).await;
    assert_eq!(write(&rig).await, Some(1));
    assert_eq!(stop(&rig, "t-1").await.unwrap(), 0);
    let conversation = WorkKind::Conversation;
    let follow_up = about(&rig, post("/"), conversation, "c-1", Bond::Must).await;
    assert_eq!(follow_up.unwrap(), 0);
    let messages = about(&rig, page(), conversation, "c-1", Bond::Prefers).await;
    assert_eq!(messages.unwrap(), 0);
    // What stands further down is not what the answer tells; and of what nobody remembers the active cluster is asked.
    assert_eq!(stop(&rig, "t-2").await.unwrap(), 1);
    assert_eq!(stop(&rig, "t-3").await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_work_that_is_gone_with_its_cluster_it_is_said_so() {
    let rig = rig();
    rig.fake.mood(0, TELLING);
    chat(&rig).await;
    steer(&rig, Mode::Standby).await;
    dies(&rig, 0);
    let failure = stop(&rig, "t-1").await.unwrap_err();
    assert_eq!(
        (failure.kind, failure.retry_after, failure.sent),
        (FailureKind::OwnerGone, Some(5), false)
    );
    assert!(
        failure.detail.contains("this task is in the primary cluster"),
        "{}",
        failure.detail
    );
    let conversation = WorkKind::Conversation;
    let follow_up = about(&rig, post("/"), conversation, "c-1", Bond::Must).await;
    assert!(follow_up.unwrap_err().detail.contains("this conversation"));
    // A read may know it from the other.
    let messages = about(&rig, page(), conversation, "c-1", Bond::Prefers).await;
    assert_eq!(messages.unwrap(), 1);
    assert_eq!(write(&rig).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn with_one_database_what_is_in_it_is_gone_on_with_in_the_other_cluster() {
    let rig = rig_with(|config| config.failover.shared_database = true);
    rig.fake.mood(0, TELLING);
    chat(&rig).await;
    steer(&rig, Mode::Standby).await;
    let follow_up = async || about(&rig, post("/"), WorkKind::Conversation, "c-1", Bond::Must).await;
    assert_eq!(follow_up().await.unwrap(), 0);
    dies(&rig, 0);
    assert_eq!(follow_up().await.unwrap(), 1);
    // It runs nowhere else.
    assert_eq!(stop(&rig, "t-1").await.unwrap_err().kind, FailureKind::OwnerGone);
}

#[tokio::test(start_paused = true)]
async fn work_of_the_active_cluster_waits_like_every_write_and_then_is_gone() {
    let rig = rig();
    rig.fake.mood(0, TELLING);
    chat(&rig).await;
    dies(&rig, 0);
    let before = Clock::System.now().monotonic;
    assert_eq!(stop(&rig, "t-1").await.unwrap_err().kind, FailureKind::OwnerGone);
    assert!(Clock::System.now().monotonic - before >= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn work_is_remembered_for_a_day() {
    let rig = rig();
    rig.fake.mood(0, TELLING);
    chat(&rig).await;
    rig.fake.mood(0, QUICK);
    steer(&rig, Mode::Standby).await;
    advance(Duration::from_secs(23 * 3600)).await;
    assert_eq!(stop(&rig, "t-1").await.unwrap(), 0);
    advance(Duration::from_secs(2 * 3600)).await;
    assert_eq!(stop(&rig, "t-1").await.unwrap(), 1);
}

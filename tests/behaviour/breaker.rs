//! A replica that answers its probes and fails its requests is left alone for a while, and tried before it is
//! trusted again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dify_edge::config::Config;
use dify_edge::types::time::{Clock, ManualTime};
use dify_edge::types::units::Span;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::support::client::{Answer, get, post};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Origin, Script, answer, chunk, events, json, last_chunk};
use crate::support::{eventually, metrics};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");
const HOUR: Span = Span::secs(3600);
const STATE: &str = "dify_edge_breaker_state";

/// A read that is not kept.
fn read() -> Vec<u8> {
    get("/console/api/apps", &[("Cookie", "access_token=a")])
}

fn generation() -> Vec<u8> {
    post(
        "/v1/chat-messages",
        &[KEY],
        "{\"query\": \"hi\", \"user\": \"u\", \"response_mode\": \"streaming\"}",
    )
}

/// One origin that answers everything alike, with the proxy before it.
struct Bench {
    script: Arc<Mutex<Script>>,
    origin: Origin,
    edge: Running,
    time: Arc<ManualTime>,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let script = Arc::new(Mutex::new(json(200, "{}")));
        let said = script.clone();
        let origin = Origin::start(move |_| {
            let script = said.lock().clone();
            async move { script }
        })
        .await;
        let (clock, time) = Clock::manual(SystemTime::now());
        let edge = edge::start_at(&[origin.address], clock, |config| {
            // The clock stands still while real time passes, which would be taken from these.
            let timeouts = &mut edge::api(config).timeouts;
            (timeouts.connect, timeouts.total, timeouts.write) = (HOUR, HOUR, HOUR);
            change(config);
        })
        .await;
        Self {
            script,
            origin,
            edge,
            time,
        }
    }

    fn says(&self, script: Script) {
        *self.script.lock() = script;
    }

    /// Asks so many times, and reads what comes.
    async fn ask(&self, times: usize) {
        for _ in 0..times {
            self.edge.ask(read()).await;
        }
    }

    /// Has the breaker open.
    async fn trip(&self) {
        self.says(json(503, "{}"));
        self.ask(20).await;
        assert_eq!(self.state().await, "open");
        self.says(json(200, "{}"));
    }

    /// What is shown of the only replica.
    async fn replica(&self) -> serde_json::Value {
        metrics::ask(self.edge.admin, "/upstreams").await.json()[0]["replicas"][0].clone()
    }

    async fn state(&self) -> String {
        self.replica().await["breaker"]
            .as_str()
            .expect("a state")
            .to_owned()
    }

    /// Asks, and is refused without the origin being asked: what `Retry-After` says.
    async fn refused(&self) -> String {
        let before = self.origin.counts().heads;
        let refused = self.edge.ask(read()).await;
        assert_eq!(self.origin.counts().heads, before, "the origin was asked");
        retry_after(&refused)
    }
}

/// What `Retry-After` of a refusal says.
#[track_caller]
fn retry_after(refused: &Answer) -> String {
    let json = refused.json();
    assert_eq!((refused.status, &json["status"]), (503, &503.into()));
    assert_eq!(json["code"], "service_unavailable");
    assert!(
        json["message"]
            .as_str()
            .is_some_and(|text| text.contains("fails too often"))
    );
    assert_eq!(
        refused.field("proxy-status"),
        Some("dify-edge; error=destination_unavailable")
    );
    refused.field("retry-after").unwrap_or_default().to_owned()
}

#[tokio::test]
async fn half_of_twenty_requests_that_fail_are_enough_to_leave_a_replica_alone() {
    let bench = Bench::new().await;
    bench.says(json(503, "{}"));
    bench.ask(9).await;
    bench.says(json(200, "{}"));
    bench.ask(10).await;
    bench.says(json(503, "{}"));
    assert_eq!(bench.state().await, "closed");
    bench.ask(1).await;
    assert_eq!(bench.origin.counts().requests, 20);
    assert_eq!(bench.refused().await, "30");
    let replica = bench.replica().await;
    assert_eq!(replica["half_open_in_ms"], 30_000);
    // It is not for its health that it is not asked.
    assert_eq!(
        (&replica["breaker"], &replica["healthy"]),
        (&"open".into(), &true.into())
    );
    assert_eq!(
        metrics::sum(bench.edge.admin, STATE, &["upstream=\"api\""]).await,
        2.0
    );
    bench.time.advance(Duration::from_millis(12_500));
    assert_eq!(bench.refused().await, "18");
}

#[tokio::test]
async fn after_its_sleep_one_request_at_a_time_tries_it_and_three_good_ones_close_it() {
    let bench = Bench::new().await;
    bench.trip().await;
    bench.time.advance(Duration::from_secs(30));
    let before = bench.origin.counts().requests;
    for round in 1..=3 {
        let go_on = Arc::new(Notify::new());
        let mut script = vec![Action::Wait(go_on.clone())];
        script.extend(json(200, "{\"trial\": true}"));
        bench.says(script);
        let mut trial = bench.edge.client().await;
        trial.send(read()).await;
        bench
            .origin
            .until("the trial", |counts| counts.requests == before + round)
            .await;
        for _ in 0..3 {
            assert_eq!(bench.refused().await, "1");
        }
        assert_eq!(bench.state().await, "half_open");
        assert_eq!(metrics::sum(bench.edge.admin, STATE, &[]).await, 1.0);
        go_on.notify_one();
        assert_eq!(trial.response("GET").await.json()["trial"], true);
    }
    assert_eq!(bench.state().await, "closed");
    bench.says(json(200, "{}"));
    let (one, two) = tokio::join!(bench.edge.ask(read()), bench.edge.ask(read()));
    assert_eq!((one.status, two.status), (200, 200));
    for to in ["open", "half_open", "closed"] {
        let label = format!("to=\"{to}\"");
        let times = metrics::sum(bench.edge.admin, "dify_edge_breaker_transitions_total", &[&label]).await;
        assert_eq!(times, 1.0, "{to}");
    }
}

#[tokio::test]
async fn a_trial_that_fails_leaves_it_alone_for_twice_as_long() {
    let bench = Bench::new().await;
    bench.trip().await;
    for seconds in [60, 120, 240, 300, 300] {
        bench.time.advance(Duration::from_secs(300));
        bench.says(json(502, "{}"));
        assert_eq!(bench.edge.ask(read()).await.status, 502);
        assert_eq!(bench.refused().await, seconds.to_string());
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_a_failure_and_one_that_ends_is_none() {
    let bench = Bench::new().await;
    let mut script = vec![events(), chunk("data: {}\n\n")];
    script.push(last_chunk());
    bench.says(script.clone());
    for _ in 0..20 {
        assert_eq!(bench.edge.ask(generation()).await.cut, None);
    }
    script[2] = Action::Abort;
    bench.says(script);
    for number in 0..20 {
        assert_eq!(bench.state().await, "closed", "{number}");
        let answer = bench.edge.ask(generation()).await;
        assert!(answer.status == 200 && answer.cut.is_some());
    }
    assert_eq!(bench.refused().await, "30");
}

#[tokio::test]
async fn answers_that_refuse_and_clients_that_leave_say_nothing_against_a_replica() {
    let bench = Bench::new().await;
    for status in [400, 401, 404, 422, 429, 500] {
        bench.says(json(
            status,
            "{\"code\": \"some\", \"message\": \"\", \"status\": 1}",
        ));
        bench.ask(20).await;
        assert_eq!(bench.state().await, "closed", "{status}");
    }
    for script in [
        vec![Action::Wait(Arc::default())],
        vec![events(), chunk("data: {}\n\n"), Action::Wait(Arc::default())],
    ] {
        bench.says(script.clone());
        for _ in 0..20 {
            leave(&bench, script.len() > 1).await;
        }
        assert_eq!(bench.state().await, "closed");
    }
}

/// A client that leaves before the answer, or in the middle of it.
async fn leave(bench: &Bench, in_the_middle: bool) {
    let before = bench.origin.counts();
    let mut client = bench.edge.client().await;
    client.send(generation()).await;
    bench
        .origin
        .until("the request", |counts| counts.requests > before.requests)
        .await;
    if in_the_middle {
        client.final_head().await;
        assert!(client.chunk().await.expect("a chunk").is_some());
    }
    drop(client);
    bench
        .origin
        .until("the client to leave", |counts| counts.left > before.left)
        .await;
}

#[tokio::test]
async fn a_trial_whose_client_leaves_gives_its_place_to_the_next() {
    for in_the_middle in [false, true] {
        let bench = Bench::new().await;
        bench.trip().await;
        bench.time.advance(Duration::from_secs(30));
        let mut script = vec![Action::Wait(Arc::default())];
        if in_the_middle {
            script.splice(0..0, [events(), chunk("data: {}\n\n")]);
        }
        bench.says(script);
        leave(&bench, in_the_middle).await;
        bench.says(json(200, "{}"));
        eventually("the next trial", || async {
            (bench.edge.ask(read()).await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_replica_at_which_nobody_listens_is_not_tried_for_ever() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = nobody.local_addr().expect("its address");
    drop(nobody);
    let edge = edge::start(&[address], |_| {}).await;
    let mut tried = 0;
    let refused = loop {
        let answer = edge.ask(read()).await;
        if answer.status != 502 {
            break answer;
        }
        tried += 1;
        // A read is tried three times.
        assert!(tried < 7);
    };
    assert_eq!(retry_after(&refused), "30");
    assert_eq!(tried, 6);
}

#[tokio::test]
async fn what_is_kept_is_given_while_nobody_can_be_asked() {
    let bench = Bench::with(|config| config.circuit_breaker.sleep_window = Span::secs(300)).await;
    let parameters = |key: &str| get("/v1/parameters", &[("Authorization", &format!("Bearer {key}"))]);
    bench.says(json(200, "{\"kept\": true}"));
    assert!(bench.edge.ask(parameters("app-1")).await.is_stored());
    bench.trip().await;
    // Beyond its time, and that in which it is given while a new one is fetched.
    bench.time.advance(Duration::from_secs(130));
    let before = bench.origin.counts().heads;
    let stale = bench.edge.ask(parameters("app-1")).await;
    assert_eq!((stale.status, &stale.json()["kept"]), (200, &true.into()));
    let status = stale.cache_status();
    assert!(status.contains("detail=stale-if-error"), "{status}");
    assert_eq!(retry_after(&bench.edge.ask(parameters("app-2")).await), "170");
    assert_eq!(bench.origin.counts().heads, before);
}

#[tokio::test]
async fn another_replica_serves_alone_while_one_is_left_alone() {
    let broken = Origin::start(|_| async { answer(503, &[], "") }).await;
    let good = Origin::start(|_| async { json(200, "{}") }).await;
    let edge = edge::start(&[broken.address, good.address], |_| {}).await;
    for _ in 0..100 {
        // What the broken one said until then was not passed on.
        assert_eq!(edge.ask(read()).await.status, 200);
    }
    let requests = (broken.counts().requests, good.counts().requests);
    assert_eq!(requests, (20, 100));
}

#[tokio::test]
async fn switched_off_it_asks_whatever_happens() {
    let bench = Bench::with(|config| config.circuit_breaker.enabled = false).await;
    bench.says(json(503, "{}"));
    bench.ask(60).await;
    assert_eq!(bench.origin.counts().requests, 60);
    assert_eq!(bench.state().await, "closed");
}

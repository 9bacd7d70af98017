//! Fetches whose attempts fare as a list says.
//!
//! Every attempt is recorded as it was made, so that a write that is sent twice cannot go unseen.

mod hedges;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tower::{Layer, Service, service_fn};

use super::*;
use crate::config::{UpstreamConfig, Upstreams};
use crate::types::cluster::Works;
use crate::types::outcome::RouteClass;
use crate::types::request::{
    Attempt, Client, FailedAttempt, FetchHead, FetchRequest, Lane, Placing, Timeouts, UpstreamId,
};
use crate::types::time::Clock;
use crate::types::units::{Ratio, Span};
use crate::types::{Body, Failure, FailureKind};

fn fetch(method: Method, body: Body, total: Option<Duration>) -> FetchRequest {
    let head = FetchHead {
        parts: Request::builder().method(method).body(()).unwrap().into_parts().0,
        client: Client {
            peer: "127.0.0.1:1".parse().unwrap(),
            tls: false,
            trusted: false,
        },
        upstream: UpstreamId(0),
        class: RouteClass::Listing,
        template: "*",
        lane: Lane::Short,
        principal: None,
        works: Works::default(),
        timeouts: Timeouts { total, idle: None },
        deadline: total.map(|total| Clock::System.now().monotonic + total),
    };
    FetchRequest { head, body }
}

/// The detail of a failure that stands for an attempt which routing ended.
const UNHEALTHY: &str = "unhealthy";

/// What becomes of an attempt, a second after it was made.
#[derive(Debug, Clone)]
enum Fate {
    Fails(Failure),
    /// An answer of this status, with `Retry-After` or without.
    Says(u16, bool),
    /// No replica, at once.
    Refused,
}

impl From<Failure> for Fate {
    fn from(failure: Failure) -> Self {
        Self::Fails(failure)
    }
}

struct Tried {
    result: Result<Response<Body>, Failure>,
    attempts: Vec<Made>,
    retries: f64,
    /// Labels under which retries were counted.
    reasons: Vec<String>,
    /// Retries that the budget did not allow.
    refused: f64,
    took: Duration,
}

#[derive(Debug, Clone)]
struct Made {
    number: u32,
    avoid: Vec<usize>,
    placing: Placing,
    after: Duration,
}

/// Retries as configured by `change`; `attempt` n has the fate of that place, and any further one is answered.
struct Rig {
    layer: RetryLayer,
    registry: prometheus::Registry,
}

impl Rig {
    fn new(change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        let registry = prometheus::Registry::new();
        let mut upstream = UpstreamConfig::default();
        change(&mut upstream);
        let upstreams = Upstreams::from([("api".to_owned(), upstream)]);
        let metrics = RetryMetrics::register(&registry).unwrap();
        Self {
            layer: RetryLayer::new(&upstreams, Clock::System, &metrics, 5),
            registry,
        }
    }

    fn count(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family
            .get_metric()
            .iter()
            .map(|m| m.get_counter().get_value())
            .sum()
    }

    /// Runs `request`. An attempt whose failure says `sent` has taken the body. Each has the replica of its turn.
    async fn run<F: Into<Fate>>(&self, request: FetchRequest, fates: Vec<F>) -> Tried {
        let fates: Vec<Fate> = fates.into_iter().map(Into::into).collect();
        let start = Clock::System.now().monotonic;
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = attempts.clone();
        let inner = service_fn(move |attempt: Attempt| {
            let turn = seen.lock().len();
            let fate = fates.get(turn).cloned();
            seen.lock().push(Made {
                number: attempt.number,
                avoid: attempt.avoid.to_vec(),
                placing: attempt.placing,
                after: Clock::System.now().monotonic - start,
            });
            async move {
                if matches!(fate, Some(Fate::Refused)) {
                    return Err(failed(failure(FailureKind::Overloaded)));
                }
                attempt.placed.set(turn);
                tokio::time::sleep(Duration::from_secs(1)).await;
                match fate {
                    Some(Fate::Fails(failure)) => {
                        if failure.sent {
                            attempt.body.take();
                        }
                        Err(failed(failure))
                    }
                    Some(Fate::Says(status, final_word)) => {
                        let response = Response::builder().status(status).header("turn", turn);
                        let response = match final_word {
                            true => response.header("retry-after", "3"),
                            false => response,
                        };
                        Ok(response.body(Body::from(Bytes::from_static(b"no"))).unwrap())
                    }
                    _ => Ok(Response::new(attempt.body.take().unwrap())),
                }
            }
        });
        let result = self.layer.layer(inner).call(request).await;
        let attempts = attempts.lock().clone();
        let families = self.registry.gather();
        let retries = families
            .iter()
            .find(|family| family.name() == "dify_edge_upstream_retries_total")
            .unwrap();
        let reasons = retries
            .get_metric()
            .iter()
            .filter(|m| m.get_counter().get_value() > 0.0)
            .map(|m| m.get_label()[0].value().to_owned())
            .collect();
        Tried {
            result,
            attempts,
            retries: self.count("dify_edge_upstream_retries_total"),
            reasons,
            refused: self.count("dify_edge_retries_refused_total"),
            took: Clock::System.now().monotonic - start,
        }
    }
}

/// Runs `request` once with the default configuration.
async fn run<F: Into<Fate>>(request: FetchRequest, fates: Vec<F>) -> Tried {
    Rig::new(|_| {}).run(request, fates).await
}

fn failed(failure: Failure) -> FailedAttempt {
    let replica_unhealthy = failure.detail == UNHEALTHY;
    FailedAttempt {
        failure,
        replica_unhealthy,
    }
}

fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "")
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_not_sent_is_tried_again_elsewhere_with_its_body() {
    let body = Body::from(Bytes::from_static(b"{}"));
    let fails = vec![
        failure(FailureKind::ConnectFailed),
        failure(FailureKind::ConnectTimeout),
    ];
    let tried = run(fetch(Method::POST, body, None), fails).await;
    assert!(!tried.result.unwrap().body().is_empty());
    let avoid: Vec<_> = tried
        .attempts
        .iter()
        .map(|a| (a.number, a.avoid.clone()))
        .collect();
    assert_eq!(avoid, [(0, vec![]), (1, vec![0]), (2, vec![0, 1])]);
    assert_eq!(tried.retries, 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_sent_is_never_sent_again() {
    for body in [Body::Empty, Body::from(Bytes::from_static(b"{}"))] {
        let fails = vec![failure(FailureKind::UpstreamReset).sent()];
        let tried = run(fetch(Method::POST, body, None), fails).await;
        assert_eq!(tried.result.unwrap_err().kind, FailureKind::UpstreamReset);
        assert_eq!((tried.attempts.len(), tried.retries), (1, 0.0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_is_tried_again_when_its_connection_broke() {
    let fails = vec![failure(FailureKind::UpstreamReset).sent(); 2];
    let tried = run(fetch(Method::GET, Body::Empty, None), fails).await;
    assert!(tried.result.is_ok());
    assert_eq!(tried.attempts.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_read_whose_replica_was_found_unhealthy_is_tried_elsewhere_and_a_write_is_not() {
    let ended = Failure::new(FailureKind::UpstreamTimeout, UNHEALTHY).sent();
    let tried = run(fetch(Method::GET, Body::Empty, None), vec![ended.clone()]).await;
    assert!(tried.result.is_ok());
    assert_eq!(tried.attempts[1].avoid, [0]);
    assert_eq!(
        (tried.retries, tried.reasons),
        (1.0, vec!["replica_unhealthy".to_owned()])
    );
    let late = failure(FailureKind::UpstreamTimeout).sent();
    for (method, failure) in [(Method::POST, ended), (Method::GET, late)] {
        let tried = run(fetch(method, Body::Empty, None), vec![failure]).await;
        assert_eq!(tried.result.unwrap_err().kind, FailureKind::UpstreamTimeout);
        assert_eq!(tried.attempts.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_whose_body_is_gone_is_not_tried_again() {
    let body = Body::from(Bytes::from_static(b"{}"));
    let fails = vec![failure(FailureKind::UpstreamReset).sent()];
    let tried = run(fetch(Method::GET, body, None), fails).await;
    assert!(tried.result.is_err());
    assert_eq!(tried.attempts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn three_attempts_are_all() {
    let fails = vec![failure(FailureKind::ConnectFailed); 9];
    let tried = run(fetch(Method::GET, Body::Empty, None), fails).await;
    assert_eq!(tried.result.unwrap_err().kind, FailureKind::ConnectFailed);
    assert_eq!((tried.attempts.len(), tried.retries), (3, 2.0));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_deadline() {
    let fails = vec![failure(FailureKind::ConnectFailed); 9];
    let total = Some(Duration::from_millis(1500));
    let tried = run(fetch(Method::GET, Body::Empty, total), fails).await;
    assert!(tried.result.is_err());
    assert_eq!(tried.attempts.len(), 2);
}

const REFUSED: FailureKind = FailureKind::ConnectFailed;

#[tokio::test(start_paused = true)]
async fn what_could_not_connect_goes_elsewhere_at_once_and_only_the_next_retry_waits() {
    let tried = run(fetch(Method::POST, Body::Empty, None), vec![failure(REFUSED); 2]).await;
    assert!(tried.result.is_ok());
    let [_, second, third] = &tried.attempts[..] else {
        panic!("three attempts")
    };
    assert_eq!(
        (second.placing, second.after),
        (Placing::Elsewhere, Duration::from_secs(1))
    );
    let waited = third.after - Duration::from_secs(2);
    assert_eq!(third.placing, Placing::Queue);
    assert!(
        waited > Duration::ZERO && waited < Duration::from_millis(51),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_other_replica_what_could_not_connect_waits_before_it_tries_again() {
    let fates = vec![Fate::from(failure(REFUSED)), Fate::Refused];
    let tried = run(fetch(Method::POST, Body::Empty, None), fates).await;
    assert!(tried.result.is_ok());
    let [_, refused, again] = &tried.attempts[..] else {
        panic!("three attempts")
    };
    assert_eq!(
        (refused.placing, again.placing),
        (Placing::Elsewhere, Placing::Queue)
    );
    assert!(again.after > refused.after, "it did not wait");
    assert_eq!(
        (again.number, again.avoid.clone(), tried.retries),
        (1, vec![0], 1.0)
    );
}

#[tokio::test(start_paused = true)]
async fn retries_that_fail_together_come_again_apart() {
    let rig = Rig::new(|config| config.retry.backoff = Span::millis(100));
    let mut waits = Vec::new();
    for _ in 0..20 {
        let reset = vec![failure(FailureKind::UpstreamReset)];
        let tried = rig.run(fetch(Method::GET, Body::Empty, None), reset).await;
        waits.push(tried.attempts[1].after - Duration::from_secs(1));
    }
    waits.sort_unstable();
    assert!(waits[0] < Duration::from_millis(30), "{waits:?}");
    assert!(
        waits[19] > Duration::from_millis(70) && waits[19] < Duration::from_millis(102),
        "{waits:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_wait_goes_beyond_the_deadline() {
    let rig = Rig::new(|config| config.retry.backoff = Span::secs(10));
    for _ in 0..20 {
        let total = Some(Duration::from_millis(1_200));
        let reset = vec![failure(FailureKind::UpstreamReset); 2];
        let tried = rig.run(fetch(Method::GET, Body::Empty, total), reset).await;
        assert_eq!(tried.attempts.len(), 2);
        assert!(
            tried.attempts[1].after < Duration::from_millis(1_201),
            "{:?}",
            tried.attempts
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_budget_does_not_allow_fails_as_it_failed_first() {
    let rig = Rig::new(|_| {});
    let mut retried = 0;
    for turn in 0..60 {
        // A connection that was refused, of which nothing was sent, needs leave, too.
        let fails = vec![
            failure(REFUSED),
            failure(FailureKind::ConnectTimeout),
            failure(FailureKind::UpstreamReset),
        ];
        let head = fetch(Method::GET, Body::Empty, None);
        let rig = &rig;
        let tried = rig.run(head, fails).await;
        retried = tried.attempts.len() - 1;
        if turn > 55 {
            assert_eq!(tried.attempts.len(), 3, "one a second is within the floor");
        }
    }
    assert_eq!((retried, rig.count("dify_edge_retries_refused_total")), (2, 0.0));
    let together =
        (0..200).map(|_| rig.run(fetch(Method::GET, Body::Empty, None), vec![failure(REFUSED); 3]));
    let all = futures_util::future::join_all(together).await;
    let retries: usize = all.iter().map(|tried| tried.attempts.len() - 1).sum();
    assert!((1..=30 + 40 + 2).contains(&retries), "{retries}");
    let first = all.iter().filter(|tried| tried.attempts.len() == 1);
    let mut count = 0;
    for tried in first {
        assert_eq!(tried.result.as_ref().unwrap_err().kind, REFUSED);
        assert_eq!(tried.took, Duration::from_secs(1));
        count += 1;
    }
    assert!(count > 100, "{count}");
    assert!(all[0].refused >= f64::from(count), "{}", all[0].refused);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_attempts_is_the_configured_one() {
    for attempts in [1, 2, 5] {
        let rig = Rig::new(|config| config.retry.attempts = attempts);
        let tried = rig
            .run(fetch(Method::GET, Body::Empty, None), vec![failure(REFUSED); 9])
            .await;
        assert_eq!(tried.attempts.len(), attempts as usize);
        assert_eq!((tried.retries, tried.refused), (f64::from(attempts - 1), 0.0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_a_gateway_failed_is_asked_elsewhere_at_once() {
    for (method, status) in [(Method::GET, 502), (Method::HEAD, 503), (Method::GET, 504)] {
        let tried = run(fetch(method, Body::Empty, None), vec![Fate::Says(status, false)]).await;
        assert_eq!(tried.result.unwrap().status(), 200);
        let [_, second] = &tried.attempts[..] else {
            panic!("two attempts")
        };
        assert_eq!(
            (second.placing, &second.avoid[..], second.after),
            (Placing::Elsewhere, &[0][..], Duration::from_secs(1))
        );
        assert_eq!(tried.reasons, ["gateway_error"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_stands_when_it_is_of_a_write_says_when_to_come_again_or_is_no_gateway_error() {
    for (method, status, final_word) in [
        (Method::POST, 503, false),
        (Method::PUT, 502, false),
        (Method::DELETE, 504, false),
        (Method::OPTIONS, 503, false),
        (Method::GET, 503, true),
        (Method::GET, 500, false),
        (Method::GET, 429, false),
        (Method::GET, 404, false),
    ] {
        let tried = run(
            fetch(method, Body::Empty, None),
            vec![Fate::Says(status, final_word)],
        )
        .await;
        assert_eq!(tried.result.unwrap().status(), status);
        assert_eq!(
            (tried.attempts.len(), tried.retries, tried.refused),
            (1, 0.0, 0.0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn when_every_attempt_is_answered_so_the_last_answer_is_passed_on_whole() {
    let says = [502, 503, 504].map(|status| Fate::Says(status, false));
    let tried = run(fetch(Method::GET, Body::Empty, None), says.to_vec()).await;
    let answer = tried.result.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["turn"]),
        (504, "2".parse().as_ref().unwrap())
    );
    assert!(matches!(answer.body(), Body::Full(bytes) if bytes == "no"));
    assert_eq!(tried.attempts.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_other_replica_the_answer_is_passed_on_and_costs_no_budget() {
    let rig = Rig::new(|config| config.retry.budget = Ratio(0.0));
    for _ in 0..100 {
        let fates = vec![Fate::Says(503, false), Fate::Refused];
        let tried = rig.run(fetch(Method::GET, Body::Empty, None), fates).await;
        let answer = tried.result.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["turn"]),
            (503, "0".parse().as_ref().unwrap())
        );
        assert!(matches!(answer.body(), Body::Full(bytes) if bytes == "no"));
        assert_eq!(
            (tried.attempts.len(), tried.retries, tried.refused),
            (2, 0.0, 0.0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_discarded_answer_is_let_go_as_soon_as_another_replica_is_asked() {
    let rig = Rig::new(|_| {});
    let held = Arc::new(());
    let weak = Arc::downgrade(&held);
    let answer = Mutex::new(Some(
        Response::builder().status(503).body(body_holding(held)).unwrap(),
    ));
    let inner = service_fn(move |attempt: Attempt| {
        let first = answer.lock().take();
        let weak = weak.clone();
        async move {
            attempt.placed.set(attempt.number as usize);
            if let Some(answer) = first {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(weak.upgrade().is_none(), "it is still held");
            Ok::<_, FailedAttempt>(Response::new(Body::Empty))
        }
    });
    let inner = Arc::new(tokio::sync::Mutex::new(inner));
    let shared = service_fn(move |attempt: Attempt| {
        let inner = inner.clone();
        async move { inner.lock().await.call(attempt).await }
    });
    let answer = rig
        .layer
        .layer(shared)
        .call(fetch(Method::GET, Body::Empty, None))
        .await;
    assert_eq!(answer.unwrap().status(), 200);
}

/// A body that holds something until it is dropped.
fn body_holding(held: Arc<()>) -> Body {
    let pending = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Failure>>();
    let held = futures_util::StreamExt::map(pending, move |frame| {
        let _ = &held;
        frame
    });
    Body::stream(http_body_util::StreamBody::new(held))
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_after_its_head_is_not_asked_for_again() {
    let broken = || {
        let cut = Failure::new(FailureKind::UpstreamReset, "cut").sent();
        let frames = futures_util::stream::iter([Err::<http_body::Frame<Bytes>, _>(cut)]);
        Body::stream(http_body_util::StreamBody::new(frames))
    };
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let inner = service_fn(move |attempt: Attempt| {
        *counted.lock() += 1;
        attempt.placed.set(0);
        async move { Ok::<_, FailedAttempt>(Response::new(broken())) }
    });
    let answer = Rig::new(|_| {})
        .layer
        .layer(inner)
        .call(fetch(Method::GET, Body::Empty, None))
        .await;
    let body = http_body_util::BodyExt::collect(answer.unwrap().into_body()).await;
    assert!(body.is_err());
    assert_eq!(*calls.lock(), 1);
}

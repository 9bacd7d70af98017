//! Fetches whose attempts fail as a list says.
//!
//! Every attempt is recorded as it was made, so that a write that is sent twice cannot go unseen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tower::{Layer, Service, service_fn};

use super::*;
use crate::types::outcome::RouteClass;
use crate::types::request::{
    Attempt, Client, FailedAttempt, FetchHead, FetchRequest, Lane, Timeouts, UpstreamId,
};
use crate::types::time::Clock;
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
        lane: Lane::Short,
        principal: None,
        timeouts: Timeouts { total, idle: None },
        deadline: total.map(|total| Clock::System.now().monotonic + total),
    };
    FetchRequest { head, body }
}

/// The detail of a failure that stands for an attempt which routing ended.
const UNHEALTHY: &str = "unhealthy";

struct Tried {
    result: Result<Response<Body>, Failure>,
    attempts: Vec<Attempt>,
    retries: f64,
    /// Labels under which retries were counted.
    reasons: Vec<String>,
}

/// Runs `request` where attempt n fails as `fails[n]` says and any further one is answered. An attempt that
/// says `sent` has taken the body. Each failure is put down to the replica of its number.
async fn run(request: FetchRequest, fails: Vec<Failure>) -> Tried {
    let registry = prometheus::Registry::new();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let inner = service_fn(move |attempt: Attempt| {
        let number = attempt.number as usize;
        let failure = fails.get(number).cloned();
        seen.lock().push(attempt.clone());
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match failure {
                Some(failure) => {
                    if failure.sent {
                        attempt.body.take();
                    }
                    let replica_unhealthy = failure.detail == UNHEALTHY;
                    Err(FailedAttempt {
                        failure,
                        replica: Some(number),
                        replica_unhealthy,
                    })
                }
                None => Ok(Response::new(attempt.body.take().unwrap())),
            }
        }
    });
    let layer = RetryLayer::new(Clock::System, RetryMetrics::register(&registry).unwrap());
    let result = layer.layer(inner).call(request).await;
    let attempts = attempts.lock().clone();
    let families = registry.gather();
    let retries = families[0]
        .get_metric()
        .iter()
        .map(|m| m.get_counter().get_value())
        .sum();
    let reasons = families[0]
        .get_metric()
        .iter()
        .filter(|m| m.get_counter().get_value() > 0.0)
        .map(|m| m.get_label()[0].value().to_owned())
        .collect();
    Tried {
        result,
        attempts,
        retries,
        reasons,
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
        .map(|a| (a.number, a.avoid.to_vec()))
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
    assert_eq!(tried.attempts[1].avoid.to_vec(), [0]);
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

//! Background work: asks each replica from time to time whether it is well, and looks its name up again.
//!
//! A probe goes through the same stage as a request, so it proves the same way, but it takes no slot: a
//! replica that is busy is not ill.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::{sleep, sleep_until, timeout};
use tower::{Service, ServiceExt};

use super::health::Event;
use super::pool::Pool;
use crate::config::upstreams::HealthCheckConfig;
use crate::types::outcome::RouteClass;
use crate::types::request::{BodySlot, Client, Dispatch, FetchHead, Lane, Timeouts};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// Time from one look-up of a name to the next.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two probes of a replica, however many requests fail at it.
const PROBE_GAP: Duration = Duration::from_millis(500);
/// A probe's answer is read up to here.
const PROBE_BODY: usize = 64 * 1024;

/// Probes one replica for ever.
pub(super) async fn probe<S>(
    pool: Arc<Pool>,
    replica: usize,
    check: HealthCheckConfig,
    service: S,
    clock: Clock,
) where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure> + Clone + Send,
    S::Future: Send,
{
    // Not all replicas, and not all proxies, at the same moment.
    let spread = ahash::RandomState::new().hash_one(replica) % check.interval.0.as_millis().max(1) as u64;
    sleep(Duration::from_millis(spread)).await;
    loop {
        let started = clock.now().monotonic;
        let well = ask(&pool, replica, &check, service.clone(), &clock).await;
        pool.learn(replica, if well { Event::ProbeOk } else { Event::ProbeFailed });
        tokio::select! {
            () = sleep_until(started + check.interval.0.max(PROBE_GAP)) => {}
            () = pool.replicas[replica].probe_soon.notified() => sleep_until(started + PROBE_GAP).await,
        }
    }
}

async fn ask<S>(pool: &Pool, replica: usize, check: &HealthCheckConfig, service: S, clock: &Clock) -> bool
where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure>,
{
    let replica = &pool.replicas[replica];
    if replica.endpoint.addresses().is_empty() {
        replica.look_up(clock.now().monotonic, None, clock).await;
    }
    let Some(dispatch) = question(replica, check, clock) else {
        return false;
    };
    let exchange = async {
        let response = service.oneshot(dispatch).await.ok()?;
        let well = response.status().is_success();
        // Read to the end, so that the replica's log shows no broken connection.
        let mut body = response.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.ok()?.data_ref().map_or(0, bytes::Bytes::len);
            if read > PROBE_BODY {
                break;
            }
        }
        well.then_some(())
    };
    matches!(timeout(check.timeout.0, exchange).await, Ok(Some(())))
}

fn question(replica: &super::replica::Replica, check: &HealthCheckConfig, clock: &Clock) -> Option<Dispatch> {
    let (parts, ()) = Request::get(&check.path)
        .header(HOST, replica.endpoint.authority())
        .header(USER_AGENT, "dify-edge-probe")
        .body(())
        .ok()?
        .into_parts();
    let now = clock.now().monotonic;
    Some(Dispatch {
        fetch: Arc::new(FetchHead {
            parts,
            client: Client {
                peer: ([127, 0, 0, 1], 0).into(),
                tls: false,
                trusted: false,
            },
            upstream: replica.endpoint.upstream,
            class: RouteClass::Health,
            lane: Lane::Interactive,
            timeouts: Timeouts {
                total: Some(check.timeout.0),
                idle: None,
            },
            deadline: Some(now + check.timeout.0),
        }),
        body: BodySlot::new(Body::Empty),
        endpoint: replica.endpoint.clone(),
        slot: None,
    })
}

/// Looks the name of one replica up for ever.
pub(super) async fn keep_looking_up(pool: Arc<Pool>, replica: usize, clock: Clock) {
    loop {
        let now = clock.now().monotonic;
        pool.replicas[replica].look_up(now, None, &clock).await;
        sleep(LOOKUP_INTERVAL).await;
    }
}

//! Background work: asks each replica from time to time whether it is well, and looks its name up again.
//!
//! A probe goes through the same stage as a request, so it proves the same way, but it takes no slot: a
//! replica that is busy is not ill. One that fails is followed by others at once, one after the other, until
//! the replica is out or has answered.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::{sleep, sleep_until, timeout};
use tower::{Service, ServiceExt};

use super::grpc_probe;
use super::health::Event;
use super::pool::Pool;
use super::replica::Replica;
use crate::config::upstreams::HealthCheckConfig;
use crate::types::cluster::Works;
use crate::types::outcome::RouteClass;
use crate::types::request::{BodySlot, Client, Dispatch, FetchHead, Lane, Timeouts};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// Time from one look-up of a name to the next.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two probes of a replica that answers, or is out, however many requests fail at it.
const PROBE_GAP: Duration = Duration::from_millis(500);
/// Time from a failed probe to the next while it is open whether the replica is ill. Short, so that those who
/// wait for a frozen replica learn of it while there is time to ask another.
const DOUBT_GAP: Duration = Duration::from_millis(100);
/// Longest time between two probes of a replica that is out.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(1);
/// A probe's answer is read up to here.
const PROBE_BODY: usize = 64 * 1024;

/// Probes one replica for ever.
pub(super) async fn probe<S>(
    pool: Arc<Pool>,
    probed: Arc<Replica>,
    check: HealthCheckConfig,
    service: S,
    clock: Clock,
) where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure> + Clone + Send,
    S::Future: Send,
{
    // Not all replicas, and not all proxies, at the same moment.
    let spread =
        ahash::RandomState::new().hash_one(probed.place()) % check.interval.0.as_millis().max(1) as u64;
    let mut pause = Duration::from_millis(spread);
    let mut started = clock.now().monotonic;
    loop {
        tokio::select! {
            () = sleep_until(started + pause) => {}
            () = probed.probe_soon.notified() => sleep_until(started + PROBE_GAP).await,
        }
        // Bounded, because requests that are answered meanwhile keep a replica in whose probes all fail.
        for _ in 0..check.unhealthy_after.max(1) {
            started = clock.now().monotonic;
            let answer = ask(&probed, &check, service.clone(), &clock).await;
            probed.signals.lock().probed(answer.is_ok());
            pool.learn(
                &probed,
                match answer {
                    Ok(()) => Event::ProbeOk,
                    Err(_) => Event::ProbeFailed,
                },
                started,
            );
            let Err(why) = answer else { break };
            tracing::debug!(replica = probed.url, %why, "probe failed");
            probed.observed.probe_failed(why, clock.now().monotonic);
            if !probed.is_healthy() {
                break;
            }
            sleep(DOUBT_GAP).await;
        }
        pause = check.interval.0.max(PROBE_GAP);
        if !probed.is_healthy() {
            pause = pause.min(RECOVERY_INTERVAL);
        }
    }
}

/// Asks once.
///
/// # Errors
/// What is wrong with the answer, for the log.
async fn ask<S>(
    replica: &Replica,
    check: &HealthCheckConfig,
    service: S,
    clock: &Clock,
) -> Result<(), Cow<'static, str>>
where
    S: Service<Dispatch, Response = Response<Body>, Error = Failure>,
{
    if replica.endpoint.addresses().is_empty() {
        replica.look_up(clock.now().monotonic, None, clock).await;
    }
    let Some(dispatch) = question(replica, check, clock) else {
        return Err("the probe's path cannot be asked for".into());
    };
    let exchange = async {
        let mut response = service
            .oneshot(dispatch)
            .await
            .map_err(|failure| failure.detail)?;
        replica.take_report(response.headers_mut(), clock.now().monotonic);
        let status = response.status();
        let mut told = grpc_probe::Told::of(response.headers());
        // Read to the end, so that the replica's log shows no broken connection.
        let mut body = response.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|failure| failure.detail)?;
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if check.grpc.is_some() {
                told.hear(&frame);
            }
            if read > PROBE_BODY {
                break;
            }
        }
        if check.grpc.is_some() && status.is_success() {
            told.verdict()
        } else if status.is_success() {
            Ok(())
        } else {
            Err(format!("the answer is {status}").into())
        }
    };
    timeout(check.timeout.0, exchange)
        .await
        .unwrap_or(Err("no answer in time".into()))
}

fn question(replica: &Replica, check: &HealthCheckConfig, clock: &Clock) -> Option<Dispatch> {
    let (request, body) = match &check.grpc {
        None => (Request::get(&check.path), Body::Empty),
        Some(service) => grpc_probe::question(service),
    };
    let (parts, ()) = request
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
            template: "*",
            lane: Lane::Short,
            principal: None,
            works: Works::default(),
            timeouts: Timeouts {
                total: Some(check.timeout.0),
                idle: None,
            },
            deadline: Some(now + check.timeout.0),
        }),
        body: BodySlot::new(body),
        endpoint: replica.endpoint.clone(),
        slot: None,
    })
}

/// Looks the name of one replica up for ever.
pub(super) async fn keep_looking_up(replica: Arc<Replica>, clock: Clock) {
    loop {
        let now = clock.now().monotonic;
        replica.look_up(now, None, &clock).await;
        sleep(LOOKUP_INTERVAL).await;
    }
}

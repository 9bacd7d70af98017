//! The leaf of the request path: [`Upstream`] sends a [`Dispatch`] and streams the answer back.
//!
//! One exchange in order: take a connection (`pool`, `connector`), send the request and wait for the head of the
//! answer, hand over what the answer's body must hold (`response_body`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::connection::Connection;
use super::connector::{Connector, native_roots};
use super::group::{Group, Kept};
use super::metrics::UpstreamMetrics;
use super::pool::Pool;
use super::request_body::{Progress, RequestBody};
use super::response_body::{Carrier, Held, ResponseBody};
use super::{headers, multiplex, tunnel};
use crate::config::Upstreams;
use crate::types::endpoint::Endpoint;
use crate::types::outcome::Phases;
use crate::types::request::{BodySlot, Dispatch, FetchHead, UpstreamId};
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

/// How often connections at rest are looked through.
const SWEEP: Duration = Duration::from_millis(500);

/// Sends requests to replicas over connections that it keeps.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    clock: Clock,
    connector: Arc<Connector>,
    groups: Vec<Group>,
    metrics: UpstreamMetrics,
    tunnels: TaskTracker,
}

/// Why an exchange on one connection gave no answer.
pub(super) struct NoAnswer {
    pub(super) failure: Failure,
    /// Whether the connection broke (rather than time or the client's body).
    pub(super) broke: bool,
}

impl NoAnswer {
    /// The connection ended, or the exchange on it.
    pub(super) fn lost(sent: bool) -> Self {
        let mut failure = Failure::new(FailureKind::UpstreamReset, CLOSED);
        failure.sent = sent;
        Self { failure, broke: true }
    }

    /// There is nothing left of the request. An attempt is made only while its body is there.
    pub(super) fn gone() -> Self {
        let failure = Failure::new(FailureKind::UpstreamReset, "the request cannot be sent again");
        Self {
            failure: failure.sent(),
            broke: false,
        }
    }
}

impl Upstream {
    /// Prepares a pool for every replica of `config`. Tunnels (after `Upgrade`) run on `tunnels`.
    ///
    /// # Errors
    /// When a replica's URL cannot be read, or TLS is asked for and this machine trusts no certificate.
    pub fn new(
        config: &Upstreams,
        clock: Clock,
        metrics: &UpstreamMetrics,
        tunnels: TaskTracker,
    ) -> Result<Self, String> {
        let uses_tls = config.values().any(|upstream| {
            let mut replicas = upstream.replicas.iter().chain(&upstream.standby);
            replicas.any(|replica| replica.url.starts_with("https:"))
                || upstream.discovery.as_ref().is_some_and(|discovery| discovery.tls)
        });
        let roots = uses_tls.then(native_roots).transpose()?;
        Self::with_roots(config, clock, metrics, tunnels, roots)
    }

    /// The same with certificates of the caller's choice.
    pub(super) fn with_roots(
        config: &Upstreams,
        clock: Clock,
        metrics: &UpstreamMetrics,
        tunnels: TaskTracker,
        roots: Option<rustls::RootCertStore>,
    ) -> Result<Self, String> {
        let connector = Arc::new(Connector::new(clock.clone(), roots)?);
        let mut groups = Vec::new();
        for (index, (name, upstream)) in config.iter().enumerate() {
            // Said now rather than at the first request.
            for (place, from) in upstream.replicas.iter().chain(&upstream.standby).enumerate() {
                Endpoint::parse(UpstreamId(index), place, &from.url)?;
            }
            groups.push(Group::new(name, upstream, &connector, &clock));
        }
        Ok(Self(Arc::new(Inner {
            connector,
            clock,
            groups,
            metrics: metrics.clone(),
            tunnels,
        })))
    }

    /// Starts the task that closes connections which have been at rest too long. It ends with `token`.
    pub fn spawn_background(&self, token: CancellationToken, tracker: &TaskTracker) {
        let inner = self.0.clone();
        tracker.spawn(token.run_until_cancelled_owned(async move {
            let mut ticks = tokio::time::interval(SWEEP);
            loop {
                ticks.tick().await;
                let now = inner.clock.now().monotonic;
                for group in &inner.groups {
                    group.sweep(now, &inner.metrics);
                }
            }
        }));
    }
}

impl Service<Dispatch> for Upstream {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dispatch: Dispatch) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.exchange(dispatch).await })
    }
}

impl Inner {
    async fn exchange(&self, dispatch: Dispatch) -> Result<Response<Body>, Failure> {
        let Some(group) = self.groups.get(dispatch.endpoint.upstream.0) else {
            return Err(Failure::new(FailureKind::NoReplica, "no such upstream"));
        };
        match group.kept(&dispatch.endpoint, &self.metrics) {
            Kept::Exclusive(pool) => self.exchange_alone(group, &pool, dispatch).await,
            Kept::Shared(pool) => multiplex::exchange(&pool, dispatch, &self.clock).await,
        }
    }

    /// The exchange over a connection that is its own as long as it lasts.
    async fn exchange_alone(
        &self,
        group: &Group,
        pool: &Arc<Pool>,
        dispatch: Dispatch,
    ) -> Result<Response<Body>, Failure> {
        let Dispatch {
            fetch,
            body,
            endpoint,
            slot,
        } = dispatch;
        let lease = pool.lease();
        let upgrade = Upgrade::wanted(&fetch, &body);

        // An origin may close a connection at rest at any moment (gunicorn does after 2 s), and a request
        // that is then lost cannot be told from one that was carried out before the connection went. A
        // safe request is simply sent again. Everything else goes on a connection of its own, so that a
        // write neither fails for a stale connection nor is sent twice: to connect costs far less than a
        // write to Dify does. How long a connection rested makes no difference to this, so there is no
        // limit to it but the configured one.
        let may_reuse = slot.is_some() && upgrade.is_none() && fetch.is_safe() && body.is_empty();
        let mut answer = None;
        let mut connect_time = Duration::ZERO;
        if may_reuse && let Some(connection) = pool.check_out(self.clock.now().monotonic) {
            match self.send(connection, &fetch, &body, None, &endpoint).await {
                Ok(sent) => answer = Some(sent),
                Err(NoAnswer { broke: true, .. }) => pool.metrics.stale.inc(),
                Err(NoAnswer { failure, .. }) => return Err(failure),
            }
        }
        let sent = match answer {
            Some(sent) => sent,
            None => {
                pool.make_room();
                let start = self.clock.now().monotonic;
                let limit = earliest(Some(start + group.connect), fetch.deadline).unwrap_or(start);
                let connection = self.connector.connect(&endpoint, limit).await?;
                pool.metrics.opened.inc();
                connect_time = self.clock.now().monotonic.duration_since(start);
                self.send(connection, &fetch, &body, upgrade.as_ref(), &endpoint)
                    .await
                    .map_err(|none| none.failure)?
            }
        };

        let phases = Phases {
            queue: Duration::ZERO,
            connect: connect_time,
            first_byte: sent.first_byte,
        };
        let held = Held {
            carrier: Carrier::Exclusive {
                reusable: sent.response.version() == Version::HTTP_11
                    && !headers::says_close(sent.response.headers()),
                connection: sent.connection,
                lease,
            },
            slot,
            progress: sent.progress,
        };
        self.answer(sent.response, held, &fetch, upgrade, phases)
    }

    /// Sends the request on `connection` and waits for the head of the answer.
    async fn send(
        &self,
        mut connection: Connection,
        fetch: &FetchHead,
        body: &BodySlot,
        upgrade: Option<&Upgrade>,
        endpoint: &Endpoint,
    ) -> Result<Sent, NoAnswer> {
        let Some((content, progress)) = RequestBody::take(body, self.clock.clone(), false) else {
            return Err(NoAnswer::gone());
        };
        let request = build(fetch, content, upgrade, endpoint, false);
        let written_before = connection.written();
        let start = self.clock.now().monotonic;
        let mut head = std::pin::pin!(connection.sender.try_send_request(request));
        let outcome = loop {
            let limit = limit(fetch, &progress);
            if limit.is_some_and(|limit| limit <= self.clock.now().monotonic) {
                break Err(overdue(&progress));
            }
            tokio::select! {
                biased;
                done = head.as_mut() => break Ok(done),
                () = connection.ended() => break match head.as_mut().now_or_never() {
                    Some(done) => Ok(done),
                    // Handed over at the very moment in which the driver ended, a request stays where it is:
                    // neither an answer nor an error would ever come.
                    None => Err(NoAnswer::lost(false)),
                },
                () = until(limit) => {}
            }
        };
        let failure = match outcome {
            Ok(Ok(response)) => {
                let first_byte = self.clock.now().monotonic.duration_since(start);
                return Ok(Sent {
                    response,
                    connection,
                    progress,
                    first_byte,
                });
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %error.error(), "no answer from a replica");
                let broke = progress.failure().is_none();
                let failure = progress.failure().unwrap_or_else(|| {
                    Failure::new(
                        FailureKind::UpstreamReset,
                        if error.error().is_parse() {
                            "the upstream's answer is not HTTP"
                        } else {
                            CLOSED
                        },
                    )
                });
                NoAnswer { failure, broke }
            }
            Err(none) => none,
        };
        if connection.written() > written_before {
            return Err(NoAnswer {
                failure: failure.failure.sent(),
                ..failure
            });
        }
        Err(failure)
    }

    /// Turns what came back into the answer that goes up the path.
    fn answer(
        &self,
        mut response: Response<Incoming>,
        held: Held,
        fetch: &FetchHead,
        upgrade: Option<Upgrade>,
        phases: Phases,
    ) -> Result<Response<Body>, Failure> {
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
        let on_upgrade = switching.then(|| hyper::upgrade::on(&mut response));
        let (mut parts, incoming) = response.into_parts();
        headers::from_upstream(&mut parts.headers, version, switching);
        parts.extensions.insert(phases);
        let body = match (on_upgrade, upgrade) {
            (Some(upstream), Some(Upgrade { client, .. })) => {
                self.tunnels
                    .spawn(tunnel::join(client, upstream, held, self.clock.clone()));
                Body::Empty
            }
            (Some(_), None) => {
                let detail = "the upstream switched protocols without being asked";
                return Err(Failure::new(FailureKind::UpstreamReset, detail).sent());
            }
            (None, _) => content(incoming, held, fetch, &self.clock),
        };
        Ok(Response::from_parts(parts, body))
    }
}

/// The answer that goes up the path, of what came back over HTTP/2.
pub(super) fn hand_over(
    mut response: Response<Incoming>,
    held: Held,
    fetch: &FetchHead,
    phases: Phases,
    clock: &Clock,
) -> Response<Body> {
    let version = std::mem::replace(response.version_mut(), Version::HTTP_11);
    let (mut parts, incoming) = response.into_parts();
    headers::from_upstream(&mut parts.headers, version, false);
    parts.extensions.insert(phases);
    Response::from_parts(parts, content(incoming, held, fetch, clock))
}

fn content(incoming: Incoming, held: Held, fetch: &FetchHead, clock: &Clock) -> Body {
    if incoming.is_end_stream() {
        held.finish(clock);
        return Body::Empty;
    }
    Body::stream(ResponseBody::new(
        incoming,
        held,
        clock.clone(),
        fetch.timeouts,
        fetch.deadline,
    ))
}

/// When the wait for the head of an answer is over.
pub(super) fn limit(fetch: &FetchHead, progress: &Progress) -> Option<Instant> {
    let idle = fetch.timeouts.idle.map(|idle| progress.moved() + idle);
    earliest(idle, fetch.deadline)
}

/// What is said then. A client that sends slowly must not make its replica look slow.
pub(super) fn overdue(progress: &Progress) -> NoAnswer {
    let (kind, detail) = if progress.is_starved() {
        (FailureKind::RequestTimeout, "the request's body took too long")
    } else {
        (
            FailureKind::UpstreamTimeout,
            "the upstream did not answer in time",
        )
    };
    NoAnswer {
        failure: Failure::new(kind, detail),
        broke: false,
    }
}

const CLOSED: &str = "the upstream closed the connection without an answer";

/// Waits until `limit`; for ever without one.
pub(super) async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// An answer's head, with what the exchange holds.
struct Sent {
    response: Response<Incoming>,
    connection: Connection,
    progress: Progress,
    first_byte: Duration,
}

/// A client's wish to switch protocols.
pub(super) struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

impl Upgrade {
    /// Only a request without body can switch, and only when its connection can be handed over.
    fn wanted(fetch: &FetchHead, body: &BodySlot) -> Option<Self> {
        let protocol = headers::upgrade_asked(&fetch.parts)?;
        let client = fetch.parts.extensions.get::<OnUpgrade>()?.clone();
        body.is_empty().then_some(Self { protocol, client })
    }
}

/// The request as the replica gets it; `multiplexed` over HTTP/2.
pub(super) fn build(
    fetch: &FetchHead,
    body: RequestBody,
    upgrade: Option<&Upgrade>,
    endpoint: &Endpoint,
    multiplexed: bool,
) -> Request<RequestBody> {
    let protocol = upgrade.map(|upgrade| upgrade.protocol.clone());
    let mut request = Request::new(body);
    *request.method_mut() = fetch.parts.method.clone();
    // Path and query exactly as the client sent them.
    let target = fetch.parts.uri.path_and_query().cloned();
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.headers_mut() = headers::to_upstream(
        &fetch.parts,
        &fetch.client,
        protocol,
        &endpoint.authority(),
        multiplexed,
    );
    if multiplexed {
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = headers::absolute(target, request.headers_mut(), endpoint);
        return request;
    }
    // In origin form.
    *request.uri_mut() = Uri::from(target);
    let body = request.body();
    if body.is_end_stream() || request.headers().contains_key(CONTENT_LENGTH) {
        return request;
    }
    if body.size_hint().exact().is_none() {
        // Said aloud, because hyper leaves out the body of a GET whose length it does not know.
        request
            .headers_mut()
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

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
use super::metrics::UpstreamMetrics;
use super::pool::Pool;
use super::request_body::{Progress, RequestBody};
use super::response_body::{Held, ResponseBody};
use super::{headers, tunnel};
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
    connector: Connector,
    groups: Vec<Group>,
    tunnels: TaskTracker,
}

/// What is kept for one configured upstream.
struct Group {
    connect: Duration,
    /// By replica; standby replicas come last.
    pools: Vec<Arc<Pool>>,
}

/// Why an exchange on one connection gave no answer.
struct NoAnswer {
    failure: Failure,
    /// Whether the connection broke (rather than time or the client's body).
    broke: bool,
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
        let uses_tls = config
            .values()
            .flat_map(|upstream| upstream.replicas.iter().chain(&upstream.standby))
            .any(|replica| replica.url.starts_with("https:"));
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
        let mut groups = Vec::new();
        for (index, (name, upstream)) in config.iter().enumerate() {
            let mut pools = Vec::new();
            for (replica, from) in upstream.replicas.iter().chain(&upstream.standby).enumerate() {
                let endpoint = Endpoint::parse(UpstreamId(index), replica, &from.url)?;
                pools.push(Arc::new(Pool::new(
                    upstream.connections.usable(),
                    upstream.connections.idle_timeout.0,
                    metrics.replica(name, &endpoint.authority()),
                )));
            }
            groups.push(Group {
                connect: upstream.timeouts.connect.0,
                pools,
            });
        }
        Ok(Self(Arc::new(Inner {
            connector: Connector::new(clock.clone(), roots)?,
            clock,
            groups,
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
                for pool in inner.groups.iter().flat_map(|group| &group.pools) {
                    pool.sweep(now);
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
        let Dispatch {
            fetch,
            body,
            endpoint,
            slot,
        } = dispatch;
        let found = self
            .groups
            .get(endpoint.upstream.0)
            .and_then(|group| Some((group.connect, group.pools.get(endpoint.replica)?)));
        let Some((connect_limit, pool)) = found else {
            return Err(Failure::new(FailureKind::NoReplica, "no such replica"));
        };
        let lease = pool.lease(&endpoint);
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
                let limit = earliest(Some(start + connect_limit), fetch.deadline).unwrap_or(start);
                let connection = self.connector.connect(&endpoint, limit).await?;
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
            reusable: sent.response.version() == Version::HTTP_11
                && !headers::says_close(sent.response.headers()),
            connection: sent.connection,
            lease,
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
        let Some((content, progress)) = RequestBody::take(body, self.clock.clone()) else {
            // An attempt is made only while the body is there.
            let failure = Failure::new(FailureKind::UpstreamReset, "the request cannot be sent again").sent();
            return Err(NoAnswer {
                failure,
                broke: false,
            });
        };
        let request = build(fetch, content, upgrade, endpoint);
        let written_before = connection.written();
        let start = self.clock.now().monotonic;
        let mut head = std::pin::pin!(connection.sender.try_send_request(request));
        let outcome = loop {
            let idle = fetch.timeouts.idle.map(|idle| progress.moved() + idle);
            let limit = earliest(idle, fetch.deadline);
            if limit.is_some_and(|limit| limit <= self.clock.now().monotonic) {
                // A client that sends slowly must not make its replica look slow.
                let failure = if progress.is_starved() {
                    Failure::new(FailureKind::RequestTimeout, "the request's body took too long")
                } else {
                    Failure::new(
                        FailureKind::UpstreamTimeout,
                        "the upstream did not answer in time",
                    )
                };
                break Err(NoAnswer {
                    failure,
                    broke: false,
                });
            }
            tokio::select! {
                biased;
                done = head.as_mut() => break Ok(done),
                () = connection.ended() => break match head.as_mut().now_or_never() {
                    Some(done) => Ok(done),
                    // Handed over at the very moment in which the driver ended, a request stays where it is:
                    // neither an answer nor an error would ever come.
                    None => Err(NoAnswer {
                        failure: Failure::new(FailureKind::UpstreamReset, CLOSED),
                        broke: true,
                    }),
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
            (None, _) if incoming.is_end_stream() => {
                held.finish(&self.clock);
                Body::Empty
            }
            (None, _) => Body::stream(ResponseBody::new(
                incoming,
                held,
                self.clock.clone(),
                fetch.timeouts,
                fetch.deadline,
            )),
        };
        Ok(Response::from_parts(parts, body))
    }
}

const CLOSED: &str = "the upstream closed the connection without an answer";

/// Waits until `limit`; for ever without one.
async fn until(limit: Option<Instant>) {
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
struct Upgrade {
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

fn build(
    fetch: &FetchHead,
    body: RequestBody,
    upgrade: Option<&Upgrade>,
    endpoint: &Endpoint,
) -> Request<RequestBody> {
    let protocol = upgrade.map(|upgrade| upgrade.protocol.clone());
    let mut request = Request::new(body);
    *request.method_mut() = fetch.parts.method.clone();
    // Path and query exactly as the client sent them, in origin form.
    *request.uri_mut() = fetch
        .parts
        .uri
        .path_and_query()
        .map_or_else(|| Uri::from_static("/"), |target| Uri::from(target.clone()));
    *request.headers_mut() =
        headers::to_upstream(&fetch.parts, &fetch.client, protocol, &endpoint.authority());
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

//! The cache as a tower service: look-up, single flight, fill, and the end of what a write changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AGE, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::sync::oneshot;
use tower::{Layer, Service, ServiceExt as _};

use super::cache_status::{CacheStatus, Forward};
use super::coalesce::{self, Flights, Landing, Leader, Role};
use super::control::CacheControl;
use super::entry::{Entry, detached};
use super::fill::{Collected, collect};
use super::freshness;
use super::invalidation::{TagTable, TagVersions};
use super::key::Key;
use super::metrics::CacheMetrics;
use super::request_control::{RequestControl, needs_origin};
use super::tier::l1_memory::{L1, default_max_bytes};
use super::write_guard::WriteGuard;
use crate::config::CacheConfig;
use crate::types::failure::Origin;
use crate::types::ids::Principal;
use crate::types::outcome::{CacheOutcome, Outcome, Phases, RouteClass};
use crate::types::request::{CacheClass, ClassifiedRequest, FetchHead, FetchRequest};
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

/// How long a key whose answer could not be shared is fetched without waiting for others.
const UNSHARED_FOR: Duration = Duration::from_secs(5);
/// How many such keys are remembered.
const UNSHARED_KEYS: u64 = 16_384;

/// Puts a [`Cache`] before a service that fetches.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: CacheConfig,
    clock: Clock,
    metrics: CacheMetrics,
    l1: L1,
    flights: Flights,
    tags: Arc<TagTable>,
    unshared: moka::sync::Cache<Key, tokio::time::Instant>,
}

impl CacheLayer {
    /// An empty cache.
    pub fn new(config: CacheConfig, clock: Clock, metrics: CacheMetrics) -> Self {
        let max_bytes = config
            .local
            .max_bytes
            .map_or_else(default_max_bytes, |size| size.0);
        let l1 = L1::new(max_bytes, Duration::from_secs(config.ttl_seconds), &metrics);
        let tags = Arc::new(TagTable::new(clock.now().monotonic));
        let unshared = moka::sync::Cache::new(UNSHARED_KEYS);
        let shared = Shared {
            config,
            clock,
            metrics,
            l1,
            flights: Flights::new(),
            tags,
            unshared,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A handle for the administrative side.
    pub fn control(&self) -> CacheControl {
        CacheControl::new(self.shared.l1.clone(), self.shared.metrics.clone())
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;
    fn layer(&self, inner: S) -> Cache<S> {
        Cache {
            shared: self.shared.clone(),
            inner,
        }
    }
}

/// Answers from memory what it can, fetches and keeps what it may.
#[derive(Debug, Clone)]
pub struct Cache<S> {
    shared: Arc<Shared>,
    inner: S,
}

/// A hit is ready at once and is not boxed.
pub enum CacheFuture {
    /// Answered from memory.
    Ready(Option<Result<Response<Body>, Failure>>),
    /// Answered by a fetch.
    Pending(Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>),
}

impl Future for CacheFuture {
    type Output = Result<Response<Body>, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(answer) => match answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            },
            Self::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

/// What is known of a request that nothing stored could answer.
#[derive(Debug, Clone)]
struct Miss {
    key: Key,
    class: CacheClass,
    /// Not in the route table.
    unknown_route: bool,
    forward: Forward,
    outcome: Outcome,
}

/// What a fetch came to.
enum Fetched {
    /// An answer that everyone with the key may have.
    Shared {
        entry: Arc<Entry>,
        /// Whether it went into the cache, too.
        stored: bool,
        phases: Phases,
        /// What only the client that asked gets.
        cookies: Vec<HeaderValue>,
    },
    /// An answer for the client that asked, and why it is not shared.
    Unshared(Response<Body>, &'static str),
}

impl<S> Service<ClassifiedRequest> for Cache<S>
where
    S: Service<FetchRequest, Response = Response<Body>, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = CacheFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ClassifiedRequest) -> CacheFuture {
        let outcome = Outcome {
            class: request.class,
            template: request.template,
            cache: CacheOutcome::Bypass,
            principal: request.principal,
            phases: Phases::default(),
        };
        if !request.invalidates.is_empty() {
            return self.write(request, outcome);
        }
        match self.plan(&request) {
            Plan::Pass(forward, detail) => self.pass(request, outcome, forward, detail),
            Plan::LookUp(principal, control) => self.look_up(request, outcome, principal, control),
        }
    }
}

enum Plan {
    Pass(Forward, &'static str),
    LookUp(Principal, RequestControl),
}

impl<S> Cache<S>
where
    S: Service<FetchRequest, Response = Response<Body>, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn plan(&self, request: &ClassifiedRequest) -> Plan {
        let method = &request.parts.method;
        if method != Method::GET && method != Method::HEAD {
            return Plan::Pass(Forward::Method, request.class.as_str());
        }
        if request.cache == CacheClass::Never || !self.shared.config.enable_local {
            return Plan::Pass(Forward::Bypass, request.class.as_str());
        }
        let Some(principal) = request.principal else {
            return Plan::Pass(Forward::Bypass, "no-principal");
        };
        if !request.body.is_empty() {
            return Plan::Pass(Forward::Bypass, "request-body");
        }
        let control = RequestControl::of(&request.parts.headers);
        if control.no_store {
            return Plan::Pass(Forward::Request, "no-store");
        }
        Plan::LookUp(principal, control)
    }

    /// Forwards what the cache has no part in.
    fn pass(
        &self,
        request: ClassifiedRequest,
        outcome: Outcome,
        forward: Forward,
        detail: &'static str,
    ) -> CacheFuture {
        let fetch = self.fetch(request);
        CacheFuture::Pending(Box::pin(async move {
            let mut response = fetch.await.map_err(|failure| with_outcome(failure, outcome))?;
            let status = CacheStatus {
                forward: Some(forward),
                forward_status: Some(response.status().as_u16()),
                detail: Some(detail),
                ..CacheStatus::default()
            };
            status.write(response.headers_mut());
            finish(&mut response, outcome);
            Ok(response)
        }))
    }

    /// Forwards a write and ends what it changes.
    fn write(&self, mut request: ClassifiedRequest, outcome: Outcome) -> CacheFuture {
        let shared = &self.shared;
        let tags = std::mem::take(&mut request.invalidates);
        let guard = WriteGuard::new(
            shared.tags.clone(),
            tags,
            shared.clock.clone(),
            shared.metrics.clone(),
        );
        let known = outcome.class != RouteClass::Passthrough;
        if known {
            guard.sent();
        }
        let pass = self.pass(request, outcome, Forward::Method, outcome.class.as_str());
        CacheFuture::Pending(Box::pin(async move {
            match pass.await {
                Ok(response) => {
                    if !known && found_no_handler(&response) {
                        guard.settle();
                        return Ok(response);
                    }
                    guard.answered();
                    if outcome.class == RouteClass::Generation {
                        return Ok(response.map(|body| guard.until_end_of(body)));
                    }
                    guard.settle();
                    Ok(response)
                }
                Err(failure) => {
                    if !failure.sent {
                        guard.settle();
                    }
                    Err(failure)
                }
            }
        }))
    }

    fn look_up(
        &self,
        request: ClassifiedRequest,
        mut outcome: Outcome,
        principal: Principal,
        control: RequestControl,
    ) -> CacheFuture {
        let shared = &self.shared;
        let key = Key::of(&request, principal);
        let now = shared.clock.now().monotonic;
        let mut forward = if control.no_cache {
            Forward::Request
        } else {
            Forward::UriMiss
        };
        if let Some(entry) = shared.l1.get(&key) {
            let ttl = entry.ttl(now);
            if control.no_cache {
                // Not even somebody else's fetch will do.
            } else if ttl.is_zero() || !shared.tags.is_current(&entry.versions) {
                forward = Forward::Stale;
            } else if needs_origin(&request.parts.headers, &entry.headers) {
                return self.pass(request, outcome, Forward::Request, "condition");
            } else if !control.accepts(entry.age(now), ttl) {
                forward = Forward::Request;
            } else {
                outcome.cache = CacheOutcome::Hit;
                let mut response = entry.response(&request.parts.method, now);
                let status = CacheStatus {
                    hit: true,
                    ttl: Some(ttl.as_secs()),
                    key: Some(&key),
                    detail: Some(request.class.as_str()),
                    ..CacheStatus::default()
                };
                status.write(response.headers_mut());
                finish(&mut response, outcome);
                return CacheFuture::Ready(Some(Ok(response)));
            }
        }
        if control.only_if_cached {
            let failure = Failure::new(
                FailureKind::OnlyIfCached,
                "nothing fresh is stored (only-if-cached)",
            );
            return CacheFuture::Ready(Some(Err(with_outcome(failure, outcome))));
        }
        if request.parts.method == Method::HEAD {
            return self.pass(request, outcome, forward, "head");
        }
        outcome.cache = CacheOutcome::Miss;
        let miss = Miss {
            key,
            class: request.cache,
            unknown_route: request.template == "*",
            forward,
            outcome,
        };
        self.begin(request, miss, now)
    }

    fn begin(&self, request: ClassifiedRequest, miss: Miss, now: tokio::time::Instant) -> CacheFuture {
        let shared = self.shared.clone();
        let versions = shared.tags.versions(&request.fills);
        // What cannot be shared must not make others wait for it. Unknown routes are of that kind until the
        // origin says otherwise; a request that refuses stored answers wants one of its own.
        let alone = miss.unknown_route
            || miss.forward == Forward::Request
            || shared.unshared.get(&miss.key).is_some_and(|until| now < until);
        let role = (!alone).then(|| shared.flights.join(miss.key, &versions));
        let fetch = self.fetch(request);
        match role {
            Some(Role::Follower(flight)) => CacheFuture::Pending(Box::pin(async move {
                shared.metrics.coalesced.inc();
                match coalesce::wait(flight).await {
                    Landing::Shared(entry, stored) => Ok(shared.collapsed(&entry, stored, miss)),
                    Landing::Failed(failure) => Err(with_outcome(failure, miss.outcome)),
                    Landing::Unshared => {
                        let fetched = shared.fill(fetch, &miss, versions).await;
                        shared.answer(fetched, miss)
                    }
                }
            })),
            Some(Role::Leader(leader)) => {
                let (answer, answered) = oneshot::channel();
                let leading = shared.clone().lead(leader, fetch, miss.clone(), versions, answer);
                tokio::spawn(leading);
                CacheFuture::Pending(Box::pin(async move {
                    let fetched = answered.await.unwrap_or_else(|_| {
                        Err(Failure::new(FailureKind::UpstreamReset, "the fetch was lost").sent())
                    });
                    shared.answer(fetched, miss)
                }))
            }
            None => CacheFuture::Pending(Box::pin(async move {
                let fetched = shared.fill(fetch, &miss, versions).await;
                shared.answer(fetched, miss)
            })),
        }
    }

    /// The table of tags, for a test to bump.
    #[cfg(test)]
    pub(super) fn tags_for_test(&self) -> Arc<TagTable> {
        self.shared.tags.clone()
    }

    /// The request without the cache's concerns, on its way.
    fn fetch(
        &self,
        request: ClassifiedRequest,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + Send + use<S> {
        let now = self.shared.clock.now().monotonic;
        let head = FetchHead {
            parts: request.parts,
            client: request.client,
            upstream: request.upstream,
            class: request.class,
            lane: request.lane,
            timeouts: request.timeouts,
            deadline: request.timeouts.total.map(|total| now + total),
        };
        let body = request.body;
        self.inner.clone().oneshot(FetchRequest { head, body })
    }
}

impl Shared {
    /// Fetches for everyone who waits; detached from the request that began it.
    async fn lead(
        self: Arc<Self>,
        leader: Leader,
        fetch: impl Future<Output = Result<Response<Body>, Failure>> + Send,
        miss: Miss,
        versions: TagVersions,
        answer: oneshot::Sender<Result<Fetched, Failure>>,
    ) {
        let fetched = self.fill(fetch, &miss, versions).await;
        leader.land(match &fetched {
            Ok(Fetched::Shared { entry, stored, .. }) => Landing::Shared(entry.clone(), *stored),
            Ok(Fetched::Unshared(..)) => Landing::Unshared,
            // What lies with the client that asked does not concern the others.
            Err(failure) if failure.kind.origin() == Origin::Client => Landing::Unshared,
            Err(failure) => Landing::Failed(failure.clone()),
        });
        // Nobody listens when the client has gone: then an answer that is not shared ends here.
        let _ = answer.send(fetched);
    }

    /// Fetches, and stores what may be stored.
    async fn fill(
        &self,
        fetch: impl Future<Output = Result<Response<Body>, Failure>> + Send,
        miss: &Miss,
        versions: TagVersions,
    ) -> Result<Fetched, Failure> {
        let response = fetch.await?;
        let now = self.clock.now();
        let head = freshness::by_head(
            miss.class,
            response.status(),
            response.headers(),
            // An unknown route's principal covers the whole Cookie field.
            miss.unknown_route,
            &self.config,
            now,
        );
        let storable = match head {
            Ok(storable) => storable,
            Err(reason) => return Ok(self.unshared(miss, response, reason)),
        };
        let (mut head, body) = response.into_parts();
        let body = match collect(body, self.config.local.entry_limit()).await {
            Collected::Whole(body) => body,
            Collected::Unfinished(body, reason) => {
                return Ok(self.unshared(miss, Response::from_parts(head, body), reason));
            }
        };
        let now = self.clock.now();
        let decided = freshness::by_body(miss.class, &head.headers, &body, storable, &self.config, now);
        let storable = match decided {
            Ok(storable) => storable,
            Err(reason) => {
                let response = Response::from_parts(head, Body::from(body));
                return Ok(self.unshared(miss, response, reason));
            }
        };
        let phases = head.extensions.get::<Phases>().copied().unwrap_or_default();
        let cookies = match head.headers.entry(SET_COOKIE) {
            http::header::Entry::Occupied(cookies) => cookies.remove_entry_mult().1.collect(),
            http::header::Entry::Vacant(_) => Vec::new(),
        };
        head.headers.remove(AGE);
        let entry = Arc::new(Entry {
            status: head.status,
            reason: head.extensions.remove::<ReasonPhrase>(),
            headers: detached(&head.headers),
            body,
            stored_at: now.monotonic,
            initial_age: storable.age,
            fresh_until: now.monotonic + storable.ttl,
            versions,
        });
        let stored =
            self.tags.is_current(&entry.versions) && self.tags.is_settled(&entry.versions, now.monotonic);
        if stored {
            self.l1.insert(miss.key, entry.clone());
        }
        Ok(Fetched::Shared {
            entry,
            stored,
            phases,
            cookies,
        })
    }

    /// Remembers that this key's answers are not to be waited for.
    fn unshared(&self, miss: &Miss, response: Response<Body>, reason: &'static str) -> Fetched {
        self.unshared
            .insert(miss.key, self.clock.now().monotonic + UNSHARED_FOR);
        Fetched::Unshared(response, reason)
    }

    /// The answer to the request that fetched.
    fn answer(&self, fetched: Result<Fetched, Failure>, mut miss: Miss) -> Result<Response<Body>, Failure> {
        match fetched {
            Ok(Fetched::Shared {
                entry,
                stored,
                phases,
                cookies,
            }) => {
                miss.outcome.cache = if stored {
                    CacheOutcome::Stored
                } else {
                    CacheOutcome::Miss
                };
                let mut response = self.share(&entry, stored, false, &miss);
                response
                    .headers_mut()
                    .extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
                response.extensions_mut().insert(phases);
                finish(&mut response, miss.outcome);
                Ok(response)
            }
            Ok(Fetched::Unshared(mut response, reason)) => {
                let status = CacheStatus {
                    forward: Some(miss.forward),
                    forward_status: Some(response.status().as_u16()),
                    key: Some(&miss.key),
                    detail: Some(reason),
                    ..CacheStatus::default()
                };
                status.write(response.headers_mut());
                finish(&mut response, miss.outcome);
                Ok(response)
            }
            Err(failure) => Err(with_outcome(failure, miss.outcome)),
        }
    }

    /// The answer to a request that waited.
    fn collapsed(&self, entry: &Entry, stored: bool, mut miss: Miss) -> Response<Body> {
        miss.outcome.cache = CacheOutcome::Collapsed;
        let mut response = self.share(entry, stored, true, &miss);
        finish(&mut response, miss.outcome);
        response
    }

    fn share(&self, entry: &Entry, stored: bool, collapsed: bool, miss: &Miss) -> Response<Body> {
        let mut response = entry.fetched_response();
        let status = CacheStatus {
            forward: Some(miss.forward),
            forward_status: Some(entry.status.as_u16()),
            stored,
            collapsed,
            ttl: stored.then(|| entry.ttl(self.clock.now().monotonic).as_secs()),
            key: Some(&miss.key),
            detail: Some(miss.outcome.class.as_str()),
            ..CacheStatus::default()
        };
        status.write(response.headers_mut());
        response
    }
}

/// Whether the answer to a write that the table does not know shows that no code of Dify ran: 405, a redirect to
/// the path's proper spelling, a refusal for want of a credential, or an HTML page of its server or router.
/// Otherwise anybody could empty the cache by asking for nonsense.
fn found_no_handler(response: &Response<Body>) -> bool {
    let html = || {
        let kind = response.headers().get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
    };
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNAUTHORIZED
        | StatusCode::MOVED_PERMANENTLY
        | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED => html(),
        _ => false,
    }
}

/// Leaves word of what happened for metrics and the access log.
fn finish(response: &mut Response<Body>, mut outcome: Outcome) {
    if let Some(phases) = response.extensions_mut().remove::<Phases>() {
        outcome.phases = phases;
    }
    response.extensions_mut().insert(outcome);
}

fn with_outcome(mut failure: Failure, outcome: Outcome) -> Failure {
    failure.outcome.get_or_insert(outcome);
    failure
}

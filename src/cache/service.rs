//! The cache as a tower service: look-up, single flight, fill, and the end of what a write changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{Method, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt as _};

use super::cache_status::{CacheStatus, Forward};
use super::coalesce::{self, Landing, Role};
use super::control::CacheControl;
use super::entry::Entry;
use super::fetching::{Miss, Shared, finish, with_outcome};
use super::invalidation::SharedVersions;
use super::key::Key;
use super::metrics::CacheMetrics;
use super::plan::{Plan, StaleUse, Verdict, judge};
use super::repeat::StoredAnswer;
use super::request_control::RequestControl;
use super::settle::Watch;
use super::write_guard::WriteGuard;
use crate::config::CacheConfig;
use crate::types::ids::Principal;
use crate::types::outcome::{CacheOutcome, Outcome, Phases, RouteClass};
use crate::types::repeat::Repeatable;
use crate::types::request::{ClassifiedRequest, FetchHead, FetchRequest, Lane};
use crate::types::time::Clock;
use crate::types::{Body, Failure, FailureKind};

/// Puts a [`Cache`] before a service that fetches.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    shared: Arc<Shared>,
}

impl CacheLayer {
    /// An empty cache in this process alone.
    pub fn new(config: CacheConfig, clock: Clock, metrics: CacheMetrics) -> Self {
        Self::of(Shared::alone(config, clock, metrics))
    }

    /// A cache with this state.
    pub(super) fn of(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A handle for the administrative side.
    pub fn control(&self) -> CacheControl {
        CacheControl::new(self.shared.clone())
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

/// Where a stored answer was found.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// In this process; the class of its route.
    Memory(&'static str),
    /// In the tier that instances share.
    Shared,
}

impl Source {
    /// The word for `Cache-Status`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Memory(class) => class,
            Self::Shared => "l2",
        }
    }
}

/// What comes of a stored answer.
enum Use {
    /// It is given.
    Answer(Response<Body>),
    /// The origin has to evaluate a condition or range.
    Condition,
    /// The origin has to be asked, and why; what may be given if it fails.
    Fetch(Forward, Option<Arc<Entry>>),
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
        let outcome = outcome(&request);
        let plan = Plan::of(
            &request.parts.method,
            &request.parts.headers,
            !request.body.is_empty(),
            &request.decision,
            self.shared.config.keeps(),
        );
        match plan {
            Plan::Write => self.write(request, outcome),
            Plan::Pass(forward, detail) => self.pass(request, outcome, forward, detail),
            Plan::LookUp(principal, control) => self.look_up(request, outcome, principal, control),
        }
    }
}

impl<S> Cache<S>
where
    S: Service<FetchRequest, Response = Response<Body>, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Forwards what the cache has no part in.
    fn pass(
        &self,
        request: ClassifiedRequest,
        outcome: Outcome,
        forward: Forward,
        detail: &'static str,
    ) -> CacheFuture {
        let watch = Watch::of(&self.shared, &request.decision);
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
            Ok(match watch {
                Some(watch) => watch.look_at(response).await,
                None => response,
            })
        }))
    }

    /// Forwards a write and ends what it changes.
    fn write(&self, mut request: ClassifiedRequest, outcome: Outcome) -> CacheFuture {
        let guard = WriteGuard::new(&self.shared, &mut request.decision);
        let known = outcome.class != RouteClass::Passthrough;
        if known {
            guard.sent();
        }
        let pass = self.pass(request, outcome, Forward::Method, outcome.class.as_str());
        let patience = self.shared.patience();
        CacheFuture::Pending(Box::pin(async move {
            match pass.await {
                Ok(response) => {
                    if !known && found_no_handler(&response) {
                        guard.settle();
                        return Ok(response);
                    }
                    // Who asks another instance next shall see what was written here.
                    guard.answered().within(patience).await;
                    if outcome.class == RouteClass::Generation {
                        return Ok(guard.until_end_of(response));
                    }
                    Ok(guard.settle_after(response).await)
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
        let key = Key::of(&request.parts, &request.client, principal);
        let found = shared.l1.get(&key);
        let source = Source::Memory(request.decision.class.as_str());
        let found = self.use_stored(&request, key, found, source, &control, &mut outcome);
        match &found {
            Use::Answer(_) => shared.metrics.l1_hits.inc(),
            _ => shared.metrics.l1_misses.inc(),
        }
        match found {
            Use::Answer(response) => CacheFuture::Ready(Some(Ok(response))),
            Use::Condition => self.pass(request, outcome, Forward::Request, "condition"),
            Use::Fetch(forward, stale) => match &shared.l2 {
                Some(l2) if l2.is_open() => {
                    let this = self.clone();
                    CacheFuture::Pending(Box::pin(async move {
                        this.look_up_shared(request, outcome, key, control).await
                    }))
                }
                _ => self.without(request, outcome, key, &control, (forward, stale), None),
            },
        }
    }

    /// Looks in the tier that instances share, then for what has come to memory meanwhile.
    async fn look_up_shared(
        self,
        request: ClassifiedRequest,
        mut outcome: Outcome,
        key: Key,
        control: RequestControl,
    ) -> Result<Response<Body>, Failure> {
        let shared = &self.shared;
        let (entry, versions) = shared.look_up(&key, &request.decision).await;
        let (entry, source) = match entry {
            Some(entry) => (Some(entry), Source::Shared),
            None => (
                shared.l1.get(&key),
                Source::Memory(request.decision.class.as_str()),
            ),
        };
        match self.use_stored(&request, key, entry, source, &control, &mut outcome) {
            Use::Answer(response) => Ok(response),
            Use::Condition => self.pass(request, outcome, Forward::Request, "condition").await,
            Use::Fetch(forward, stale) => {
                self.without(request, outcome, key, &control, (forward, stale), versions)
                    .await
            }
        }
    }

    /// What a stored answer is good for, and the answer itself if it is good enough.
    fn use_stored(
        &self,
        request: &ClassifiedRequest,
        key: Key,
        found: Option<Arc<Entry>>,
        source: Source,
        control: &RequestControl,
        outcome: &mut Outcome,
    ) -> Use {
        let shared = &self.shared;
        let now = shared.clock.now().monotonic;
        let Some(entry) = found else {
            let forward = if control.no_cache {
                Forward::Request
            } else {
                Forward::UriMiss
            };
            return Use::Fetch(forward, None);
        };
        let validity = shared.validity(&entry, now);
        match judge(&entry, validity, &request.parts.headers, control, now) {
            Verdict::Hit => {
                outcome.cache = CacheOutcome::Hit;
                let hot = shared
                    .config
                    .refresh_ahead
                    .as_ref()
                    .is_some_and(|ahead| entry.is_hot_and_ageing(ahead.last.0, ahead.min_hits, now));
                let detail = if hot && self.refresh(request, key, &entry, now) {
                    "refresh-ahead"
                } else {
                    source.as_str()
                };
                let mut response = stored(&entry, &request.parts.method, &key, *outcome, detail, now);
                if !hot && *control == RequestControl::default() && matches!(source, Source::Memory(_)) {
                    let repeat = StoredAnswer::new(shared.clone(), key, &entry, detail);
                    response.extensions_mut().insert(Repeatable(Arc::new(repeat)));
                }
                Use::Answer(response)
            }
            Verdict::Stale(reason) => {
                outcome.cache = CacheOutcome::Stale;
                match reason {
                    StaleUse::WhileRevalidating => shared.metrics.stale_while_revalidate.inc(),
                    StaleUse::OnError => shared.metrics.stale_if_error.inc(),
                }
                self.refresh(request, key, &entry, now);
                Use::Answer(stored(
                    &entry,
                    &request.parts.method,
                    &key,
                    *outcome,
                    reason.as_str(),
                    now,
                ))
            }
            Verdict::Fallback => Use::Fetch(Forward::Stale, Some(entry)),
            Verdict::Forward(why) => Use::Fetch(why, None),
            Verdict::Condition => Use::Condition,
        }
    }

    /// Nothing stored is the answer. `versions`: those that the tier which instances share has, if the answer may
    /// be stored there.
    fn without(
        &self,
        request: ClassifiedRequest,
        outcome: Outcome,
        key: Key,
        control: &RequestControl,
        (forward, stale): (Forward, Option<Arc<Entry>>),
        versions: Option<SharedVersions>,
    ) -> CacheFuture {
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
        let miss = miss(&request, key, forward, outcome, stale);
        self.begin(request, miss, versions)
    }

    fn begin(&self, request: ClassifiedRequest, miss: Miss, all: Option<SharedVersions>) -> CacheFuture {
        let shared = self.shared.clone();
        let now = shared.clock.now().monotonic;
        let versions = shared.versions(&request.decision, &miss.key);
        // Who is deaf may join a fetch from before a change that it could not hear of, and hear again before it ends.
        let trusts_after = shared.coherence.trusts_after(now);
        // What cannot be shared must not make others wait for it. Unknown routes are of that kind until the
        // origin says otherwise; a request that refuses stored answers wants one of its own; and while a write may
        // still take effect, an answer in flight may be from before it.
        let alone = miss.unknown_route
            || miss.forward == Forward::Request
            || shared.is_unshared(&miss.key, now)
            || !shared.tags.is_settled(&versions, now);
        let role = (!alone).then(|| shared.flights.join(miss.key, &versions));
        let fetch = self.fetch(request);
        match role {
            Some(Role::Follower(flight)) => CacheFuture::Pending(Box::pin(async move {
                shared.metrics.coalesced.inc();
                let failed = match coalesce::wait(flight).await {
                    Landing::Shared(entry, stored)
                        if trusts_after.is_none_or(|then| then < entry.checked_at) =>
                    {
                        return Ok(shared.collapsed(&entry, stored, miss));
                    }
                    Landing::Failed(failure) => Some((None, Some(failure))),
                    Landing::Refused(status) => Some((Some(status), None)),
                    Landing::Shared(..) | Landing::Unshared | Landing::Missed(_) => None,
                };
                if let Some((status, failure)) = failed {
                    if let Some(entry) = shared.fallback(&miss) {
                        return Ok(shared.stale(&entry, status, &miss));
                    }
                    if let Some(failure) = failure {
                        return Err(with_outcome(failure, miss.outcome));
                    }
                }
                let fetched = shared.fill(fetch, &miss, versions, all, None).await;
                shared.answer(fetched, miss)
            })),
            Some(Role::Leader(leader)) => {
                let (answer, answered) = oneshot::channel();
                let (leading, led) = (shared.clone(), miss.clone());
                // Detached from the request that began it: its end must not be the end for those who wait.
                tokio::spawn(async move {
                    let fetched = leading.lead(leader, fetch, &led, versions, all).await;
                    // Nobody listens when the client has gone: then an answer that is not shared ends here.
                    let _ = answer.send(fetched);
                });
                CacheFuture::Pending(Box::pin(async move {
                    let fetched = answered.await.unwrap_or_else(|_| {
                        Err(Failure::new(FailureKind::UpstreamReset, "the fetch was lost").sent())
                    });
                    shared.answer(fetched, miss)
                }))
            }
            None => CacheFuture::Pending(Box::pin(async move {
                let fetched = shared.fill(fetch, &miss, versions, all, None).await;
                shared.answer(fetched, miss)
            })),
        }
    }

    /// Begins to fetch what `request` asks for anew in the background, unless that was done a moment ago, is
    /// being done, or too much of it is being done.
    fn refresh(&self, request: &ClassifiedRequest, key: Key, entry: &Arc<Entry>, now: Instant) -> bool {
        if request.parts.method != Method::GET || !entry.take_refresh(now) {
            return false;
        }
        let shared = self.shared.clone();
        let Ok(permit) = shared.refreshes.clone().try_acquire_owned() else {
            shared.metrics.refreshes_skipped.inc();
            return false;
        };
        let versions = shared.versions(&request.decision, &key);
        let Role::Leader(leader) = shared.flights.join(key, &versions) else {
            return false;
        };
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = request.parts.method.clone();
        parts.uri = request.parts.uri.clone();
        parts.version = request.parts.version;
        parts.headers = request.parts.headers.clone();
        let copy = ClassifiedRequest {
            parts,
            body: Body::Empty,
            client: request.client,
            decision: request.decision.clone(),
        };
        let mut copy = copy;
        copy.decision.lane = Lane::Background;
        let miss = miss(&copy, key, Forward::Stale, outcome(&copy), None);
        let fetch = self.fetch(copy);
        let entry = entry.clone();
        tokio::spawn(async move {
            shared.refresh(leader, fetch, &miss, versions, &entry).await;
            drop(permit);
        });
        true
    }

    /// The table of tags, for a test to bump.
    #[cfg(test)]
    pub(super) fn tags_for_test(&self) -> Arc<super::invalidation::TagTable> {
        self.shared.tags.clone()
    }

    /// Everything, for a test to look into.
    #[cfg(test)]
    pub(super) fn shared_for_test(&self) -> Arc<Shared> {
        self.shared.clone()
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
            upstream: request.decision.upstream,
            class: request.decision.class,
            template: request.decision.template,
            lane: request.decision.lane,
            principal: request.decision.principal,
            works: request.decision.works,
            timeouts: request.decision.timeouts,
            deadline: request.decision.timeouts.total.map(|total| now + total),
        };
        let body = request.body;
        self.inner.clone().oneshot(FetchRequest { head, body })
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

/// What is known of a request before the cache is asked.
fn outcome(request: &ClassifiedRequest) -> Outcome {
    Outcome {
        class: request.decision.class,
        template: request.decision.template,
        cache: CacheOutcome::Bypass,
        principal: request.decision.principal,
        phases: Phases::default(),
    }
}

fn miss(
    request: &ClassifiedRequest,
    key: Key,
    forward: Forward,
    mut outcome: Outcome,
    stale: Option<Arc<Entry>>,
) -> Miss {
    outcome.cache = CacheOutcome::Miss;
    Miss {
        key,
        class: request.decision.cache,
        unknown_route: request.decision.template == "*",
        forward,
        outcome,
        stale,
    }
}

/// The answer from memory.
fn stored(
    entry: &Entry,
    method: &Method,
    key: &Key,
    outcome: Outcome,
    detail: &'static str,
    now: Instant,
) -> Response<Body> {
    let mut response = entry.response(method, now);
    CacheStatus::hit(entry.signed_ttl(now), key, detail).write(response.headers_mut());
    finish(&mut response, outcome);
    response
}

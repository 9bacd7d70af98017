//! The fetching half of the cache: single flight, fill, background refreshes, and the answers that come of them.
//!
//! Nothing here knows tower or the service below: a fetch comes as a future.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AGE, SET_COOKIE};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cache_status::{CacheStatus, Forward};
use super::coalesce::{self, Flights, Landing, Leader, Role};
use super::coherence::Coherence;
use super::entry::{Entry, Fate, Staleness};
use super::fill::{Collected, INCOMPLETE, collect};
use super::freshness;
use super::invalidation::{SharedVersions, TagTable, TagVersions, Validity};
use super::key::Key;
use super::metrics::CacheMetrics;
use super::packed::Packed;
use super::plan::StaleUse;
use super::request_control::Selective;
use super::shared_flight::TakeOff;
use super::tier::l1_memory::{L1, default_max_bytes};
use super::tier::l2::{Found, L2, Lease};
use crate::config::CacheConfig;
use crate::types::failure::Origin;
use crate::types::ids::{Tag, TagKind};
use crate::types::outcome::{CacheOutcome, Outcome, Phases};
use crate::types::request::{CacheClass, Decision};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// How long a key whose answer could not be shared is fetched without waiting for others.
const UNSHARED_FOR: Duration = Duration::from_secs(5);
/// How many such keys are remembered.
const UNSHARED_KEYS: u64 = 16_384;
/// Background refreshes at once.
const REFRESHES: usize = 64;

/// The state of one cache.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: CacheConfig,
    pub clock: Clock,
    pub metrics: CacheMetrics,
    pub l1: L1,
    /// Fetches.
    pub flights: Flights,
    /// Look-ups in the tier that instances share.
    lookups: Flights,
    pub tags: Arc<TagTable>,
    /// Everything that ends answers goes through it.
    pub coherence: Arc<Coherence>,
    /// What instances share.
    pub l2: Option<Arc<L2>>,
    pub refreshes: Arc<Semaphore>,
    unshared: moka::sync::Cache<Key, Instant>,
}

/// What is known of a request that nothing stored could answer.
#[derive(Debug, Clone)]
pub(super) struct Miss {
    pub key: Key,
    pub class: CacheClass,
    /// Not in the route table.
    pub unknown_route: bool,
    pub forward: Forward,
    pub outcome: Outcome,
    /// What may be given if nothing better can be had.
    pub stale: Option<Arc<Entry>>,
}

/// What a fetch came to.
pub(super) enum Fetched {
    /// An answer that everyone with the key may have.
    Shared {
        entry: Arc<Entry>,
        /// Whether it went into the cache, too.
        stored: bool,
        phases: Phases,
        /// What only the client that asked gets.
        cookies: Vec<HeaderValue>,
    },
    /// The answer that another instance fetched meanwhile.
    Elsewhere(Arc<Entry>),
    /// An answer for the client that asked, and why it is not shared.
    Unshared(Response<Body>, &'static str),
}

impl Shared {
    /// In this process alone.
    pub(super) fn alone(config: CacheConfig, clock: Clock, metrics: CacheMetrics) -> Self {
        let tags = Arc::new(TagTable::new(clock.now().monotonic));
        let coherence = Arc::new(Coherence::alone(tags.clone(), clock.clone()));
        Self::new(config, clock, metrics, tags, coherence, None)
    }

    pub(super) fn new(
        config: CacheConfig,
        clock: Clock,
        metrics: CacheMetrics,
        tags: Arc<TagTable>,
        coherence: Arc<Coherence>,
        l2: Option<Arc<L2>>,
    ) -> Self {
        let max_bytes = config
            .local
            .max_bytes
            .map_or_else(default_max_bytes, |size| size.0);
        let l1 = L1::new(max_bytes, Duration::from_secs(config.ttl_seconds), &metrics);
        Self {
            config,
            clock,
            metrics,
            l1,
            flights: Flights::new(),
            lookups: Flights::new(),
            tags,
            coherence,
            l2,
            refreshes: Arc::new(Semaphore::new(REFRESHES)),
            unshared: moka::sync::Cache::new(UNSHARED_KEYS),
        }
    }

    /// How long a client waits until the other instances are told what its request changed.
    pub(super) fn patience(&self) -> Duration {
        self.l2.as_ref().map_or(Duration::ZERO, |l2| l2.timeout())
    }

    /// The versions of everything that can end an answer to such a request. Take them before the fetch begins.
    pub(super) fn versions(&self, decision: &Decision, key: &Key) -> TagVersions {
        let fills = decision.fills.iter().copied();
        let principal = decision.principal.map(|principal| principal.to_hex());
        self.tags.versions(fills.chain([
            Tag::of(TagKind::Route, decision.template.as_bytes()),
            Tag::of(TagKind::Principal, principal.unwrap_or_default().as_bytes()),
            Tag::of(TagKind::Key, &key.prefix()),
        ]))
    }

    /// What has become of an answer that is in memory.
    pub(super) fn validity(&self, entry: &Entry, now: Instant) -> Validity {
        match self.coherence.trusts(entry.checked_at, now) {
            true => self.tags.validity(&entry.versions),
            // Somebody may have ended it, and we would not have heard.
            false => Validity::Ended,
        }
    }

    /// Puts an answer in memory, if answers are kept there; tells whether it can be found there or in the tier
    /// that instances share, where it came from or goes.
    pub(super) fn keep(&self, key: Key, entry: &Arc<Entry>) -> bool {
        if self.config.enable_local {
            self.l1.insert(key, entry.clone())
        } else {
            self.l2.as_ref().is_some_and(|l2| l2.is_open())
        }
    }

    /// What the tier that instances share has for a request, and the versions that it has. Who asks for the same at the
    /// same time waits for one look.
    pub(super) async fn look_up(
        &self,
        key: &Key,
        decision: &Decision,
    ) -> (Option<Arc<Entry>>, Option<SharedVersions>) {
        let versions = self.versions(decision, key);
        let leader = match self.lookups.join(*key, &versions) {
            Role::Leader(leader) => leader,
            Role::Follower(look) => {
                return match coalesce::wait(look).await {
                    Landing::Shared(entry, _) => (Some(entry), None),
                    Landing::Missed(versions) => (None, versions),
                    // Who looked has left.
                    _ => (None, None),
                };
            }
        };
        let found = self.read_shared(key, decision.template, &versions, false).await;
        leader.land(match &found.entry {
            Some(entry) => Landing::Shared(entry.clone(), true),
            None => Landing::Missed(found.versions.clone()),
        });
        (found.entry, found.versions)
    }

    /// What the tier that instances share has under a key, and whether somebody has the `lease` if that is asked; an
    /// answer that may be used is in memory afterwards.
    pub(super) async fn read_shared(
        &self,
        key: &Key,
        template: &'static str,
        versions: &TagVersions,
        lease: bool,
    ) -> Found {
        let Some(l2) = &self.l2 else {
            return Found::default();
        };
        // What may still change is kept nowhere; another instance may not know that it may.
        if !self.tags.is_settled(versions, self.clock.now().monotonic) {
            return Found::default();
        }
        let mut found = l2.read(key, template, versions, lease).await;
        // A change may have happened here meanwhile.
        if self.tags.validity(versions) != Validity::Current {
            return Found {
                leased: found.leased,
                ..Found::default()
            };
        }
        let now = self.clock.now().monotonic;
        if let Some(there) = self.l1.get(key)
            && self.validity(&there, now) == Validity::Ended
        {
            // However new it is, it is out of use: after a time of deafness, what was found may be this very answer.
            self.l1.remove(key);
        }
        if let Some(entry) = &found.entry
            && !self.keep(*key, entry)
        {
            // There is a newer one, or the same: who read it first may have rounded its age less.
            let there = self.l1.get(key);
            found.entry = there.filter(|there| self.validity(there, now) == Validity::Current);
        }
        found
    }

    /// Whether the answers of this key were not to be waited for a short while ago.
    pub(super) fn is_unshared(&self, key: &Key, now: Instant) -> bool {
        self.unshared.get(key).is_some_and(|until| now < until)
    }

    /// Fetches for everyone who waits.
    pub(super) async fn lead(
        &self,
        leader: Leader,
        fetch: impl Future<Output = Result<Response<Body>, Failure>> + Send,
        miss: &Miss,
        versions: TagVersions,
        shared: Option<SharedVersions>,
    ) -> Result<Fetched, Failure> {
        let mut versions = versions;
        let (shared, lease) = match self.take_off(miss, &mut versions, shared).await {
            TakeOff::Elsewhere(entry) => {
                leader.land(Landing::Shared(entry.clone(), true));
                return Ok(Fetched::Elsewhere(entry));
            }
            TakeOff::Alone(shared) => (shared, None),
            TakeOff::Leading(shared, lease) => (shared, Some(lease)),
        };
        let fetched = self.fill(fetch, miss, versions, shared, lease).await;
        leader.land(match &fetched {
            Ok(Fetched::Shared { entry, stored, .. }) => Landing::Shared(entry.clone(), *stored),
            Ok(Fetched::Elsewhere(entry)) => Landing::Shared(entry.clone(), true),
            Ok(Fetched::Unshared(response, reason)) if is_no_answer(response.status(), reason) => {
                Landing::Refused(response.status())
            }
            Ok(Fetched::Unshared(..)) => Landing::Unshared,
            // What lies with the client that asked does not concern the others.
            Err(failure) if failure.kind.origin() == Origin::Client => Landing::Unshared,
            Err(failure) => Landing::Failed(failure.clone()),
        });
        fetched
    }

    /// Fetches in the background to replace `old`.
    pub(super) async fn refresh(
        &self,
        leader: Leader,
        fetch: impl Future<Output = Result<Response<Body>, Failure>> + Send,
        miss: &Miss,
        versions: TagVersions,
        old: &Entry,
    ) {
        let found = self
            .read_shared(&miss.key, miss.outcome.template, &versions, false)
            .await;
        if let Some(entry) = found.entry
            && entry.asked_at > old.asked_at
            && entry.staleness(false, self.clock.now().monotonic) == Staleness::Fresh
        {
            // Another instance was quicker.
            self.metrics.refreshed.inc();
            return leader.land(Landing::Shared(entry, true));
        }
        let failed = match self.lead(leader, fetch, miss, versions, found.versions).await {
            Ok(Fetched::Shared { .. } | Fetched::Elsewhere(_)) => false,
            Ok(Fetched::Unshared(response, reason)) => is_no_answer(response.status(), reason),
            Err(_) => true,
        };
        if failed {
            old.set_refresh_failed(self.clock.now().monotonic);
            self.metrics.refreshes_failed.inc();
        } else {
            self.metrics.refreshed.inc();
        }
    }

    /// Fetches, and stores what may be stored.
    pub(super) async fn fill(
        &self,
        fetch: impl Future<Output = Result<Response<Body>, Failure>> + Send,
        miss: &Miss,
        versions: TagVersions,
        shared: Option<SharedVersions>,
        lease: Option<Lease>,
    ) -> Result<Fetched, Failure> {
        let asked_at = self.clock.now().monotonic;
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
            reason: head.extensions.remove::<ReasonPhrase>().map(Box::new),
            selective: Selective::of(&head.headers),
            packed: Packed::new(&head.headers, &body),
            template: miss.outcome.template,
            asked_at,
            checked_at: asked_at,
            life: storable,
            versions,
            fate: Fate::default(),
        });
        let stored = self.tags.validity(&entry.versions) != Validity::Ended
            // Asked when a write could still take effect, it may be from before that, whenever it came.
            && self.tags.is_settled(&entry.versions, asked_at)
            && self.keep(miss.key, &entry);
        if stored
            && let Some(l2) = &self.l2
            && let Some(shared) = shared
        {
            l2.store(miss.key, &entry, shared, lease);
        }
        Ok(Fetched::Shared {
            entry,
            stored,
            phases,
            cookies,
        })
    }

    /// Remembers that this key's answers are not to be waited for, and forgets what is stored when the origin now
    /// says something else.
    fn unshared(&self, miss: &Miss, response: Response<Body>, reason: &'static str) -> Fetched {
        self.unshared
            .insert(miss.key, self.clock.now().monotonic + UNSHARED_FOR);
        let no_change = response.status().is_server_error()
            || response.status() == StatusCode::TOO_MANY_REQUESTS
            || reason == INCOMPLETE;
        if !no_change && self.l1.remove(&miss.key) {
            // Fetches of the same that are under way may bring back what was true before; and others have it, too.
            drop(self.coherence.bump(&[Tag::of(TagKind::Key, &miss.key.prefix())]));
        }
        Fetched::Unshared(response, reason)
    }

    /// What a request may be given after its fetch failed.
    pub(super) fn fallback(&self, miss: &Miss) -> Option<Arc<Entry>> {
        let entry = miss.stale.as_ref()?;
        let now = self.clock.now().monotonic;
        let validity = self.validity(entry, now);
        let staleness = entry.staleness(validity == Validity::Stale, now);
        (validity != Validity::Ended && staleness != Staleness::Expired).then(|| entry.clone())
    }

    /// The stale answer to a request whose fetch failed, with this status if there was one.
    pub(super) fn stale(&self, entry: &Entry, status: Option<StatusCode>, miss: &Miss) -> Response<Body> {
        let now = self.clock.now().monotonic;
        entry.set_refresh_failed(now);
        self.metrics.stale_if_error.inc();
        let mut response = entry.response(&Method::GET, now);
        let member = CacheStatus {
            forward: Some(miss.forward),
            forward_status: status.map(|status| status.as_u16()),
            ttl: Some(entry.signed_ttl(now)),
            key: Some(&miss.key),
            detail: Some(StaleUse::OnError.as_str()),
            ..CacheStatus::default()
        };
        member.write(response.headers_mut());
        let mut outcome = miss.outcome;
        outcome.cache = CacheOutcome::Stale;
        finish(&mut response, outcome);
        response
    }

    /// The answer to the request that fetched.
    pub(super) fn answer(
        &self,
        fetched: Result<Fetched, Failure>,
        mut miss: Miss,
    ) -> Result<Response<Body>, Failure> {
        let refused = match &fetched {
            Ok(Fetched::Shared { .. } | Fetched::Elsewhere(_)) => None,
            Ok(Fetched::Unshared(response, reason)) => {
                is_no_answer(response.status(), reason).then(|| Some(response.status()))
            }
            Err(failure) => (failure.kind.origin() != Origin::Client).then_some(None),
        };
        if let Some(status) = refused
            && let Some(entry) = self.fallback(&miss)
        {
            return Ok(self.stale(&entry, status, &miss));
        }
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
            Ok(Fetched::Elsewhere(entry)) => Ok(self.collapsed(&entry, true, miss)),
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
    pub(super) fn collapsed(&self, entry: &Entry, stored: bool, mut miss: Miss) -> Response<Body> {
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
            ttl: stored.then(|| entry.signed_ttl(self.clock.now().monotonic)),
            key: Some(&miss.key),
            detail: Some(miss.outcome.class.as_str()),
            ..CacheStatus::default()
        };
        status.write(response.headers_mut());
        response
    }
}

/// Whether an answer that is not shared for this reason stands for "no answer could be had" (RFC 5861 section 4): by
/// its status, or because it broke off.
fn is_no_answer(status: StatusCode, reason: &'static str) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504) || reason == INCOMPLETE
}

/// Leaves word of what happened for metrics and the access log.
pub(super) fn finish(response: &mut Response<Body>, mut outcome: Outcome) {
    if let Some(phases) = response.extensions_mut().remove::<Phases>() {
        outcome.phases = phases;
    }
    response.extensions_mut().insert(outcome);
}

pub(super) fn with_outcome(mut failure: Failure, outcome: Outcome) -> Failure {
    failure.outcome.get_or_insert(outcome);
    failure
}

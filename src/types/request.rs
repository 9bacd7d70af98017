//! The request in each zone: a different type per border, so that a wrong order does not compile.
//!
//! wire → classify: `http::Request<Body>` with a [`Client`] among its extensions.
//! classify → cache: [`ClassifiedRequest`]. cache → resilience: [`FetchRequest`].
//! resilience → routing: [`Attempt`]. routing → upstream: [`Dispatch`].

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::request::Parts;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::Body;
use super::cluster::Works;
use super::endpoint::{Endpoint, Slot};
use super::failure::Failure;
use super::ids::{Batch, Principal, Tag, TagKind, Tags};
use super::known::{IdKind, KnownId};
use super::outcome::{CacheOutcome, Outcome, Phases, RouteClass};

/// The connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Whether the peer spoke TLS to us.
    pub tls: bool,
    /// Whether the peer is among `trusted_proxies`: only then are its forwarding fields believed.
    pub trusted: bool,
}

impl Client {
    /// The peer's IP address, with IPv4-mapped IPv6 written as IPv4.
    pub fn ip(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Which kind of answer a route gives, for the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheClass {
    /// Never looked up, never stored.
    Never,
    /// Stored for the class TTL `metadata`.
    Metadata,
    /// Stored for the class TTL `listing`.
    Listing,
    /// A workflow run: stored for the class TTL `run` once its status is terminal, not before.
    Run,
    /// Stored for as long as the origin says explicitly (`max-age`, `s-maxage`, `Expires`), no longer.
    Origin,
}

/// Which bounded share of the replicas' slots a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Requests that a person waits for.
    Short,
    /// Long generations and streams.
    Generation,
    /// Uploads and downloads of files.
    Upload,
    /// Fetches that nobody waits for.
    Background,
}

impl Lane {
    /// Every lane; `lane as usize` is its place.
    pub const ALL: [Self; 4] = [Self::Short, Self::Generation, Self::Upload, Self::Background];

    /// Its name in the configuration and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Generation => "generation",
            Self::Upload => "upload",
            Self::Background => "background",
        }
    }
}

/// Time limits of one exchange with an upstream; `None` is "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the start of the fetch to the last byte of the answer.
    pub total: Option<Duration>,
    /// Between two reads of bytes from the upstream, or before the first.
    pub idle: Option<Duration>,
}

/// Index of a configured upstream (`upstreams:` in name order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// What a request has to do with the work that Dify goes on with after its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Background {
    /// Nothing.
    None,
    /// It begins some, which goes on changing what these tags stand for.
    Begins(Tags),
    /// Its answer tells how far a batch of documents is; these tags may be waiting for that.
    Tells(Batch, Tags),
}

/// A thing that a request is about, and that Dify has or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    /// What sort of thing.
    pub kind: IdKind,
    /// Which one.
    pub id: KnownId,
}

/// What a request asks for, in the order in which Dify looks.
pub type Asks = SmallVec<[Asked; 4]>;

/// Where in an answer stands the id of something that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learn {
    /// A JSON pointer (RFC 6901) in which `*` is every element of a list. In a stream of events it holds for the
    /// data of each.
    pub pointer: &'static str,
    /// What sort of thing has the id.
    pub kind: IdKind,
}

/// Everything that is decided about a request before the cache is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Which upstream serves it.
    pub upstream: UpstreamId,
    /// What the route is for.
    pub class: RouteClass,
    /// The route's template, `"*"` when unknown.
    pub template: &'static str,
    /// How its answers are cached.
    pub cache: CacheClass,
    /// Whose answer it is.
    pub principal: Option<Principal>,
    /// What the answer depends on.
    pub fills: Tags,
    /// What the request changes; of a write to conversations those of every user, see
    /// [`wants_user`](Self::wants_user).
    pub invalidates: Tags,
    /// Share of the slots.
    pub lane: Lane,
    /// Limits of the exchange.
    pub timeouts: Timeouts,
    /// Whether the body names the one user whose conversations the request changes:
    /// [`narrow_to`](Self::narrow_to).
    pub wants_user: bool,
    /// The work that the answer does not wait for.
    pub background: Background,
    /// What must exist for the request to succeed, in the order in which Dify looks. It ends before the first that
    /// the request does not name plainly.
    pub asks: Asks,
    /// Of what kind the thing is for which the path has no UUID where its only possible route wants one: then no route
    /// has the path.
    pub misnamed: Option<IdKind>,
    /// What a successful answer tells of what exists.
    pub learns: &'static [Learn],
    /// The work that outlives requests which it is about, or begins.
    pub works: Works,
}

impl Decision {
    /// Ends the conversations of one user instead of everybody's.
    pub fn narrow_to(&mut self, user: &str) {
        for tag in &mut self.invalidates {
            if *tag == Tag::all(TagKind::Conversations) {
                *tag = Tag::of(TagKind::Conversations, user.as_bytes());
            }
        }
    }

    /// Takes the request out of the cache.
    pub fn never_cached(&mut self) {
        self.cache = CacheClass::Never;
        self.fills.clear();
    }

    /// What metrics and logs can say of a request that ends before the cache.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            class: self.class,
            template: self.template,
            cache: CacheOutcome::None,
            principal: self.principal,
            phases: Phases::default(),
        }
    }
}

/// A request with everything that the cache wants to know about it.
#[derive(Debug)]
pub struct ClassifiedRequest {
    /// Method, raw target and fields as the client sent them (hop-by-hop fields included).
    pub parts: Parts,
    /// The body.
    pub body: Body,
    /// The connection.
    pub client: Client,
    /// What `classify` decided.
    pub decision: Decision,
}

/// What is to be fetched from an upstream; cache concerns are gone.
#[derive(Debug)]
pub struct FetchRequest {
    /// Everything but the body.
    pub head: FetchHead,
    /// The body.
    pub body: Body,
}

/// A body that is taken by the attempt that really sends it, and is still there for the next one otherwise.
#[derive(Debug, Clone)]
pub struct BodySlot(Arc<Mutex<Option<Body>>>);

impl BodySlot {
    /// Holds `body` until somebody takes it.
    pub fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body; an empty one can be taken again and again, a streaming one once.
    pub fn take(&self) -> Option<Body> {
        let mut slot = self.0.lock();
        if slot.as_ref().is_some_and(Body::is_empty) {
            Some(Body::Empty)
        } else {
            slot.take()
        }
    }

    /// Gives back a body that was taken and of which nothing was used.
    pub fn restore(&self, body: Body) {
        *self.0.lock() = Some(body);
    }

    /// Whether [`Self::take`] would give the body.
    pub fn is_available(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Whether the body is there and has no content.
    pub fn is_empty(&self) -> bool {
        self.0.lock().as_ref().is_some_and(Body::is_empty)
    }
}

/// Which replicas an attempt may have, and whether it may wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    /// Any, those of [`Attempt::avoid`] when no other can serve; it waits its turn for a slot.
    Queue,
    /// A healthy one outside `avoid` that has a slot free at once. Otherwise it is refused.
    Elsewhere,
    /// The same, but not one on standby, and only while nobody waits for a slot.
    Hedge,
}

/// Where routing notes which replica an attempt has; who made the attempt can wait for that.
#[derive(Debug, Clone, Default)]
pub struct Placed(Arc<(OnceLock<usize>, Notify)>);

impl Placed {
    /// Notes the replica's place in its upstream; the first one counts.
    pub fn set(&self, place: usize) {
        if self.0.0.set(place).is_ok() {
            self.0.1.notify_waiters();
        }
    }

    /// The replica, once it is chosen.
    pub fn get(&self) -> Option<usize> {
        self.0.0.get().copied()
    }

    /// Returns once the replica is chosen.
    pub async fn wait(&self) {
        // Made before the look, so that no note is missed.
        let noted = self.0.1.notified();
        if self.get().is_none() {
            noted.await;
        }
    }
}

/// One try of a fetch.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What to fetch.
    pub fetch: Arc<FetchHead>,
    /// The body, taken when it is sent.
    pub body: BodySlot,
    /// 0 for the first try.
    pub number: u32,
    /// Replicas (by index in their upstream) that already failed this fetch, or are being asked.
    pub avoid: SmallVec<[usize; 4]>,
    /// Where it may go.
    pub placing: Placing,
    /// Where it went.
    pub placed: Placed,
}

/// A fetch without its body; all its attempts share it.
#[derive(Debug)]
pub struct FetchHead {
    /// Method, target and fields.
    pub parts: Parts,
    /// The connection of the client that asked (forwarding fields name it).
    pub client: Client,
    /// Which upstream serves it.
    pub upstream: UpstreamId,
    /// Route class.
    pub class: RouteClass,
    /// The route's template, `"*"` when unknown.
    pub template: &'static str,
    /// Share of the slots.
    pub lane: Lane,
    /// Who asks: those who wait in a lane take turns.
    pub principal: Option<Principal>,
    /// The work that outlives requests which it is about, or begins.
    pub works: Works,
    /// Limits of the exchange.
    pub timeouts: Timeouts,
    /// When the exchange must be over, from [`Timeouts::total`].
    pub deadline: Option<Instant>,
}

impl FetchHead {
    /// Whether sending it twice does no harm (RFC 9110 section 9.2.1: safe methods).
    pub fn is_safe(&self) -> bool {
        self.parts.method.is_safe()
    }
}

/// An attempt that came to no answer; [`Attempt::placed`] says at which replica.
#[derive(Debug)]
pub struct FailedAttempt {
    /// What went wrong.
    pub failure: Failure,
    /// Whether the attempt was ended while it still waited, because its replica had become unhealthy and
    /// another can serve.
    pub replica_unhealthy: bool,
}

/// An attempt with the replica that was chosen for it.
#[derive(Debug)]
pub struct Dispatch {
    /// What to fetch.
    pub fetch: Arc<FetchHead>,
    /// The body, taken when it is sent.
    pub body: BodySlot,
    /// The replica.
    pub endpoint: Arc<Endpoint>,
    /// The right to use it, held until the answer's last byte. A probe has none: then the exchange gets a
    /// connection of its own that is closed afterwards.
    pub slot: Option<Slot>,
}

//! Who has work that outlives its request: tasks, workflow runs, batches of documents, conversations.
//!
//! An answer that tells of new work is read while it passes ([`Owners::follow`]), and the epoch in which the work was
//! begun is remembered, which says the cluster: here at once, and in Redis, where there is one, before the client sees
//! the id. So whoever is asked to stop it, by whichever client, knows where it is.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::KeysInterface as _;
use fred::types::Expiration;
use futures_util::future::join_all;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use moka::sync::Cache;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout};

use super::failover::Wish;
use super::link::Link;
use crate::types::body::longer;
use crate::types::cluster::{Begins, Epoch, Work, WorkKind, Works};
use crate::types::scan::Scanner;
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// Work is remembered for so long.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// And so many pieces of it in this process, those that were asked for least going first.
const MOST: u64 = 200_000;
/// So much of an answer is read, in bytes: the ids stand at its beginning.
const READ: usize = 256 << 10;

/// See the module.
pub(super) struct Owners {
    known: Cache<[u8; 16], (Epoch, Instant)>,
    shared: Option<Shared>,
    /// Whether both clusters work on one database, so that the other can go on with what is there.
    shared_database: bool,
    clock: Clock,
}

/// What all instances remember.
struct Shared {
    link: Arc<Link>,
    /// What keys begin with.
    prefix: String,
    /// The longest that a question may take.
    limit: Duration,
}

impl Owners {
    /// Those of the upstream `name`. `shared`: the connection to Redis, the prefix of keys there, and the longest that a
    /// question may take.
    pub(super) fn new(
        name: &str,
        shared: Option<(Arc<Link>, &str, Duration)>,
        shared_database: bool,
        clock: Clock,
    ) -> Self {
        let shared = shared.map(|(link, prefix, limit)| Shared {
            link,
            prefix: format!("{prefix}owner:{name}:"),
            limit,
        });
        Self {
            known: Cache::builder().max_capacity(MOST).time_to_live(MEMORY).build(),
            shared,
            shared_database,
            clock,
        }
    }

    /// What a request wants that is `safe` and about `works`.
    pub(super) async fn wish(&self, safe: bool, works: &Works) -> Wish {
        let owner = match works.about {
            Some((work, bond)) => self.epoch(&work).await.map(|epoch| (work.kind, epoch, bond)),
            None => None,
        };
        Wish {
            safe,
            owner,
            may_move: self.shared_database && owner.is_some_and(|(kind, ..)| !matches!(kind, WorkKind::Task)),
        }
    }

    /// The epoch in which `work` was begun, if that is known.
    async fn epoch(&self, work: &Work) -> Option<Epoch> {
        let now = self.clock.now().monotonic;
        if let Some((epoch, until)) = self.known.get(&work.id)
            && now < until
        {
            return Some(epoch);
        }
        let shared = self.shared.as_ref()?;
        let client = shared.link.client()?;
        let asking = client.get::<Option<u64>, _>(shared.key(work));
        let epoch = timeout(shared.limit, asking).await.ok()?.ok()??;
        // Zero is nobody's.
        let epoch = Some(Epoch(epoch)).filter(|epoch| epoch.0 > 0)?;
        self.known.insert(work.id, (epoch, now + MEMORY));
        Some(epoch)
    }

    /// Remembers that `work` was begun in `epoch`. What it gives ends when Redis has it, or is late.
    fn remember(&self, work: Work, epoch: Epoch) -> impl Future<Output = ()> + Send + use<> {
        let until = self.clock.now().monotonic + MEMORY;
        self.known.insert(work.id, (epoch, until));
        let told = self.shared.as_ref().and_then(|shared| {
            let client = shared.link.client()?;
            Some((client, shared.key(&work), shared.limit))
        });
        async move {
            let Some((client, key, limit)) = told else { return };
            let lives = Some(Expiration::EX(MEMORY.as_secs() as i64));
            let telling = client.set::<(), _, _>(key, epoch.0, lives, None, false);
            // Who cannot be told does not keep the client waiting.
            let _ = timeout(limit, telling).await;
        }
    }

    /// How many pieces of work are remembered here.
    pub(super) fn count(&self) -> u64 {
        // The count lags behind.
        self.known.run_pending_tasks();
        self.known.entry_count()
    }

    /// Reads what `response` tells of work that was begun in `epoch`.
    pub(super) fn follow(
        self: &Arc<Self>,
        response: Response<Body>,
        begins: &'static [Begins],
        epoch: Epoch,
    ) -> Response<Body> {
        if begins.is_empty() || response.body().is_empty() || !can_be_read(&response) {
            return response;
        }
        response.map(|inner| {
            Body::stream(Reading {
                inner,
                owners: self.clone(),
                epoch,
                scanner: Scanner::default(),
                begins,
                found: SmallVec::new(),
                left: READ,
                held: None,
            })
        })
    }
}

impl Shared {
    fn key(&self, work: &Work) -> String {
        format!("{}{}", self.prefix, work.to_hex())
    }
}

/// Whether an answer can tell of work. One that is compressed cannot be read.
fn can_be_read(answer: &Response<Body>) -> bool {
    let fields = answer.headers();
    let kind = fields.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    answer.status().is_success()
        && !fields.contains_key(CONTENT_ENCODING)
        && (kind.starts_with(b"application/json") || kind.starts_with(b"text/event-stream"))
}

type Telling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body that is read while it passes.
struct Reading {
    inner: Body,
    owners: Arc<Owners>,
    epoch: Epoch,
    scanner: Scanner,
    begins: &'static [Begins],
    /// Which of these have been found, by place.
    found: SmallVec<[usize; 4]>,
    /// How many bytes may still be read.
    left: usize,
    /// A piece that tells of new work, until Redis knows.
    held: Option<(Frame<Bytes>, Telling)>,
}

impl Reading {
    /// What tells Redis of the work that ends in `bytes`.
    fn read(&mut self, bytes: &[u8]) -> Option<Telling> {
        let bytes = &bytes[..bytes.len().min(self.left)];
        self.left -= bytes.len();
        let (begins, found) = (self.begins, &mut self.found);
        let mut works: SmallVec<[Work; 4]> = SmallVec::new();
        let place = |name: &[u8]| begins.iter().position(|it| it.name.as_bytes() == name);
        self.scanner.scan(bytes, place, |place, id| {
            if !found.contains(&place) {
                found.push(place);
                works.push(Work::named(begins[place].kind, id));
            }
        });
        if works.is_empty() {
            return None;
        }
        let telling = works
            .into_iter()
            .map(|work| self.owners.remember(work, self.epoch));
        let all = join_all(telling);
        Some(Box::pin(async move { drop(all.await) }))
    }
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        if this.held.is_none() {
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
            let telling = match &frame {
                Some(Ok(piece)) if this.left > 0 && this.found.len() < this.begins.len() => {
                    piece.data_ref().cloned().and_then(|bytes| this.read(&bytes))
                }
                _ => None,
            };
            match (frame, telling) {
                (Some(Ok(frame)), Some(telling)) => this.held = Some((frame, telling)),
                (frame, _) => return Poll::Ready(frame),
            }
        }
        if let Some((_, telling)) = &mut this.held {
            ready!(telling.as_mut().poll(cx));
        }
        Poll::Ready(this.held.take().map(|(frame, _)| Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What is held comes before the rest.
        let held = self.held.as_ref().and_then(|(frame, _)| frame.data_ref());
        longer(&self.inner.size_hint(), held.map_or(0, Bytes::len) as u64)
    }
}

//! The second tier as the cache sees it: answers that any instance fetched, behind a deadline and a gate.
//!
//! A failure of the store is a miss, never an error. Writes go through a bounded queue that drops what does not
//! fit. What a value says is believed only when its versions are those that the store has at the same moment, and
//! when no change of this instance's is on its way there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::{Reply, Seen, Tier};
use crate::cache::codec::{self, Seal};
use crate::cache::coherence::Coherence;
use crate::cache::entry::Entry;
use crate::cache::invalidation::{SharedVersions, TagVersions};
use crate::cache::key::Key;
use crate::cache::metrics::{SharedMetrics, Unread};
use crate::types::time::Clock;

/// Reads under way at once; one more is a miss.
const READS: usize = 1024;
/// Values that wait to be written, and their bytes.
const QUEUE: usize = 1024;
const QUEUE_BYTES: usize = 32 << 20;

/// See the module.
#[derive(Debug)]
pub(in crate::cache) struct L2 {
    tier: Arc<dyn Tier>,
    coherence: Arc<Coherence>,
    pub(in crate::cache) gate: Arc<Gate>,
    seal: Seal,
    clock: Clock,
    pub(in crate::cache) metrics: SharedMetrics,
    limits: Limits,
    reads: Semaphore,
    queue: mpsc::Sender<Job>,
    queued_bytes: AtomicUsize,
}

/// What is configured.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Limits {
    /// The longest that a command is waited for.
    pub timeout: Duration,
    /// The longest body that is stored.
    pub max_entry: u64,
    /// The longest that anything is stored.
    pub ceiling: Duration,
    /// How long a lease to fetch for all lasts.
    pub lease: Duration,
}

/// What was found.
#[derive(Debug, Default)]
pub(in crate::cache) struct Found {
    /// The answer, if there is one that may be used as far as its tags go.
    pub entry: Option<Arc<Entry>>,
    /// The versions that the store has; with them an answer that is fetched from now on can be stored. `None`: it
    /// cannot be.
    pub versions: Option<SharedVersions>,
    /// Whether some instance is fetching the answer for all, if that was asked.
    pub leased: bool,
}

/// Something for the queue to do.
#[derive(Debug)]
enum Job {
    Write(Key, Arc<Entry>, SharedVersions, Option<Lease>),
    Release(Key),
}

/// The right to fetch for all instances, which is given back when it is dropped.
#[derive(Debug)]
pub(in crate::cache) struct Lease {
    l2: Arc<L2>,
    key: Key,
    /// Until when it is certainly this instance's, unless it was given back.
    until: Option<Instant>,
}

impl Lease {
    /// Whether it can be given back: later it may be another's.
    fn take(&mut self) -> bool {
        let now = self.l2.clock.now().monotonic;
        self.until
            .take()
            .is_some_and(|until| now + self.l2.limits.timeout < until)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.take() {
            // Without room it ends by itself.
            let _ = self.l2.queue.try_send(Job::Release(self.key));
        }
    }
}

/// Does what is queued.
pub(in crate::cache) struct Writer {
    l2: Arc<L2>,
    jobs: mpsc::Receiver<Job>,
}

impl L2 {
    /// A tier that is asked nothing until the gate opens.
    pub(in crate::cache) fn new(
        tier: Arc<dyn Tier>,
        coherence: Arc<Coherence>,
        gate: Arc<Gate>,
        seal: Seal,
        clock: Clock,
        metrics: SharedMetrics,
        limits: Limits,
    ) -> (Arc<Self>, Writer) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let l2 = Arc::new(Self {
            tier,
            coherence,
            gate,
            seal,
            clock,
            metrics,
            limits,
            reads: Semaphore::new(READS),
            queue,
            queued_bytes: AtomicUsize::new(0),
        });
        (l2.clone(), Writer { l2, jobs })
    }

    /// Whether there is any use in asking.
    pub(in crate::cache) fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// The longest that a lease is waited for.
    pub(in crate::cache) fn lease_time(&self) -> Duration {
        self.limits.lease
    }

    /// The longest that the others' confirmation is waited for.
    pub(in crate::cache) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// What is stored under `key`, for an answer of the route `template` that depends on what `local` is of, and who
    /// has the `lease`, if that is asked.
    pub(in crate::cache) async fn read(
        &self,
        key: &Key,
        template: &'static str,
        local: &TagVersions,
        lease: bool,
    ) -> Found {
        if !self.gate.is_open() {
            return Found::default();
        }
        let slots: SmallVec<[u16; 6]> = local.slots().collect();
        let permit = self.reads.try_acquire();
        if permit.is_err() || self.coherence.is_pending(&slots) {
            self.metrics.skipped.inc();
            return Found::default();
        }
        let began = self.clock.now().monotonic;
        let Some(seen) = self.wait(self.tier.read(key, &slots, lease)).await else {
            return Found::default();
        };
        let Seen {
            value,
            leased,
            versions,
            unsettled,
        } = seen;
        if !unsettled.is_empty() {
            // The message may be on its way here still.
            self.coherence.remember(&unsettled);
            self.metrics.misses.inc();
            return Found::default();
        }
        let Some(versions) = versions else {
            self.metrics.misses.inc();
            return Found {
                leased,
                ..Found::default()
            };
        };
        let entry = value.and_then(|value| self.believed(key, &value, template, local, &versions, began));
        match &entry {
            Some(_) => self.metrics.hits.inc(),
            None => self.metrics.misses.inc(),
        }
        Found {
            entry: entry.map(Arc::new),
            versions: Some(versions),
            leased,
        }
    }

    fn believed(
        &self,
        key: &Key,
        value: &Bytes,
        template: &'static str,
        local: &TagVersions,
        versions: &SharedVersions,
        began: Instant,
    ) -> Option<Entry> {
        self.metrics.bytes_read.inc_by(value.len() as u64);
        match codec::decode(&self.seal, key, value, template, local.clone(), self.clock.now()) {
            Ok((mut entry, stored)) if stored == *versions => {
                // The store was asked after this moment, so what it said was true then or later.
                entry.checked_at = began;
                Some(entry)
            }
            Ok(_) => None,
            Err(why) => {
                self.metrics.unreadable(Unread::Value, why, began);
                None
            }
        }
    }

    /// Takes the lease to fetch for all instances; the inner `None`: another one has it. The outer: nobody can say.
    pub(in crate::cache) async fn lease(self: &Arc<Self>, key: &Key) -> Option<Option<Lease>> {
        if !self.gate.is_open() {
            return None;
        }
        let until = self.clock.now().monotonic + self.limits.lease;
        let free = self.wait(self.tier.lease(key, self.limits.lease)).await?;
        Some(free.then(|| Lease {
            l2: self.clone(),
            key: *key,
            until: Some(until),
        }))
    }

    /// Stores an answer that was asked for after `versions` were read, in a while, and then gives back the lease.
    pub(in crate::cache) fn store(
        &self,
        key: Key,
        entry: &Arc<Entry>,
        versions: SharedVersions,
        lease: Option<Lease>,
    ) {
        let too_long = entry.packed.body_len() as u64 > self.limits.max_entry;
        if !self.gate.is_open() || too_long {
            return;
        }
        let size = entry.packed.len();
        let queued = self.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let job = |lease| Job::Write(key, entry.clone(), versions, lease);
        if queued + size > QUEUE_BYTES || self.queue.try_send(job(lease)).is_err() {
            self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.metrics.writes_dropped.inc();
        }
    }

    /// The reply, if it comes in time and is one.
    async fn wait<T>(&self, reply: Reply<T>) -> Option<T> {
        let began = self.clock.now().monotonic;
        let result = timeout(self.limits.timeout, reply).await;
        let took = self.clock.now().monotonic.saturating_duration_since(began);
        match result {
            Ok(Ok(value)) => {
                self.metrics.round_trip.observe(took.as_secs_f64());
                self.gate.succeeded();
                return Some(value);
            }
            Ok(Err(error)) => {
                self.metrics.errors.inc();
                tracing::debug!("shared cache tier: {error}");
            }
            Err(_) => self.metrics.deadline_exceeded.inc(),
        }
        if self.gate.failed() {
            tracing::warn!("the shared cache tier is left out: it failed several times in a row");
        }
        None
    }

    async fn write(&self, key: Key, entry: &Entry, versions: &SharedVersions, lease: Option<Lease>) {
        let now = self.clock.now();
        let left = (entry.asked_at + entry.life.life()).saturating_duration_since(now.monotonic);
        let left = left.min(self.limits.ceiling);
        if left.is_zero() || !self.gate.is_open() {
            return;
        }
        let value = codec::encode(&self.seal, &key, entry, versions, now);
        let length = value.len() as u64;
        let release = lease.is_some_and(|mut lease| lease.take());
        if self
            .wait(self.tier.write(&key, value, left, release))
            .await
            .is_some()
        {
            self.metrics.bytes_written.inc_by(length);
            self.metrics.writes.inc();
        }
    }
}

impl Writer {
    /// Works until `stop`.
    pub(in crate::cache) async fn run(mut self, stop: CancellationToken) {
        loop {
            let job = tokio::select! {
                () = stop.cancelled() => return,
                job = self.jobs.recv() => job,
            };
            match job {
                None => return,
                Some(Job::Release(key)) => drop(self.l2.wait(self.l2.tier.release(&key)).await),
                Some(Job::Write(key, entry, versions, lease)) => {
                    self.l2.write(key, &entry, &versions, lease).await;
                    self.l2
                        .queued_bytes
                        .fetch_sub(entry.packed.len(), Ordering::Relaxed);
                }
            }
        }
    }
}

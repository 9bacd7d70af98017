//! Tags with versions: how a write ends every stored answer that it may have changed.
//!
//! A fill notes the versions that its tags had when the fetch began and keeps them in the entry; a write bumps
//! the versions when it goes out, and again after the upstream has answered and before the client sees the
//! answer; a reader takes an entry only while its versions are current. A fill that began before the write thus
//! can never be served after it. A version has two halves: a bump of the hard one ends entries, a bump of the
//! soft one makes them stale. The table is bounded: tags share slots by hash, and a shared slot only costs a
//! miss. One look at an entry costs one atomic load a tag.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::sync::{AtomicU64, Ordering, TAG_SLOTS as SLOTS};
use crate::types::ids::{Batch, Tag};

/// The hard half: 32 bits. At a thousand writes a second it comes round after 49 days; entries live for hours.
const HARD: u64 = 0xffff_ffff << SOFT_BITS;
const SOFT: u64 = (1 << SOFT_BITS) - 1;
const SOFT_BITS: u32 = 16;
const HARD_ONE: u64 = 1 << SOFT_BITS;
const INDEX_SHIFT: u32 = 48;
/// An unsettled mark: the batch that ends it in the lower 24 bits (0: none does), above it until when it holds.
const BATCH: u64 = (1 << BATCH_BITS) - 1;
const BATCH_BITS: u32 = 24;

/// The version of every tag, and until when it is unsettled.
#[derive(Debug)]
pub struct TagTable {
    /// Hard and soft half; bits above them are not looked at.
    versions: Box<[AtomicU64]>,
    /// Milliseconds since `epoch` and the batch, see [`BATCH`].
    unsettled: Box<[AtomicU64]>,
    epoch: Instant,
}

/// The versions that some tags had at one moment: the slot's index in the upper 16 bits, then the two halves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagVersions(SmallVec<[u64; 6]>);

/// What has become of something since its versions were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Nothing.
    Current,
    /// One of its tags was marked stale.
    Stale,
    /// One of its tags was bumped: it must not be used any more.
    Ended,
}

impl TagTable {
    /// A table in which nothing has been written yet; `now` is the origin of its times.
    pub fn new(now: Instant) -> Self {
        let zeros = || (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self {
            versions: zeros(),
            unsettled: zeros(),
            epoch: now,
        }
    }

    fn index(tag: Tag) -> usize {
        // The tags are FNV hashes, whose low bits are the well mixed ones.
        (tag.0 ^ (tag.0 >> 32)) as usize % SLOTS
    }

    fn load(&self, index: usize) -> u64 {
        let version = self.versions[index].load(Ordering::SeqCst) & (HARD | SOFT);
        (index as u64) << INDEX_SHIFT | version
    }

    /// The versions of `tags` now. Take them before the fetch begins.
    pub fn versions(&self, tags: impl IntoIterator<Item = Tag>) -> TagVersions {
        TagVersions(tags.into_iter().map(|tag| self.load(Self::index(tag))).collect())
    }

    /// What has happened to the tags since `versions` were taken.
    pub fn validity(&self, versions: &TagVersions) -> Validity {
        let mut changed = 0;
        for then in &versions.0 {
            changed |= self.load((then >> INDEX_SHIFT) as usize) ^ then;
        }
        match changed {
            0 => Validity::Current,
            _ if changed & HARD == 0 => Validity::Stale,
            _ => Validity::Ended,
        }
    }

    /// Whether none of the tags was touched since `versions` were taken.
    pub fn is_current(&self, versions: &TagVersions) -> bool {
        self.validity(versions) == Validity::Current
    }

    /// Ends every answer that depends on one of `tags`.
    pub fn bump(&self, tags: &[Tag]) {
        for tag in tags {
            self.versions[Self::index(*tag)].fetch_add(HARD_ONE, Ordering::SeqCst);
        }
    }

    /// Ends every answer there is.
    pub fn bump_all(&self) {
        for version in &self.versions {
            version.fetch_add(HARD_ONE, Ordering::SeqCst);
        }
    }

    /// Makes every answer stale that depends on `tag`.
    pub fn mark_stale(&self, tag: Tag) {
        mark(&self.versions[Self::index(tag)]);
    }

    /// Makes every answer stale.
    pub fn mark_all_stale(&self) {
        self.versions.iter().for_each(mark);
    }

    /// The same as [`bump`](Self::bump), for a write that may still take effect: answers that depend on `tags`
    /// are not stored until `wait` has passed, or [`settle`](Self::settle) says that `batch` is done. No batch
    /// can say that of two writes: then, and without a batch, time alone does.
    pub fn bump_unsettled(&self, tags: &[Tag], now: Instant, wait: Duration, batch: Option<Batch>) {
        let (now, until) = (self.millis(now), self.millis(now + wait));
        let digest = batch.map_or(0, |batch| u64::from(batch.digest()));
        let next = |mark: u64| {
            let held = mark >> BATCH_BITS;
            let alone = held <= now;
            Some(held.max(until) << BATCH_BITS | if alone { digest } else { 0 })
        };
        for tag in tags {
            // Cannot fail: `next` always has a value.
            let _ = self.unsettled[Self::index(*tag)].fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        }
        self.bump(tags);
    }

    /// Dify has done all that it had to do for `batch`: ends what depends on those of `tags` that wait for this
    /// and nothing else, and lets it be stored anew. Whether there were any.
    pub fn settle(&self, tags: &[Tag], batch: Batch) -> bool {
        let mut any = false;
        for tag in tags {
            let mark = &self.unsettled[Self::index(*tag)];
            let held = mark.load(Ordering::SeqCst);
            if held & BATCH == u64::from(batch.digest()) {
                // First, so that nothing is stored that was fetched while the work went on.
                self.bump(std::slice::from_ref(tag));
                any |= mark
                    .compare_exchange(held, 0, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
            }
        }
        any
    }

    /// Whether an answer with these tags may be stored at `now`.
    pub fn is_settled(&self, versions: &TagVersions, now: Instant) -> bool {
        let now = self.millis(now);
        versions.0.iter().all(|version| {
            let index = (version >> INDEX_SHIFT) as usize;
            self.unsettled[index].load(Ordering::SeqCst) >> BATCH_BITS <= now
        })
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

impl TagVersions {
    /// Whether a change of `tag` would be seen.
    pub fn cover(&self, tag: Tag) -> bool {
        let index = TagTable::index(tag) as u64;
        self.0.iter().any(|version| version >> INDEX_SHIFT == index)
    }
}

/// Adds one to the soft half, which must not spill into the hard one.
fn mark(version: &AtomicU64) {
    let next = |now: u64| Some((now & !SOFT) | (now.wrapping_add(1) & SOFT));
    // Cannot fail: `next` always has a value.
    let _ = version.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
}

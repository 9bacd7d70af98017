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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagVersions(SmallVec<[u64; 6]>);

/// The versions that all instances agree upon. They are the same only if nothing of them was changed between,
/// whatever happened to the store: what lost its versions has another epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedVersions {
    /// A random number for the time in which the store lost no change.
    pub epoch: u64,
    /// Slots of the table of tags, and how often each was bumped.
    pub slots: SmallVec<[(u16, u64); 6]>,
}

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

    /// The versions that the same tags have now.
    pub fn renewed(&self, versions: &TagVersions) -> TagVersions {
        TagVersions(
            versions
                .slots()
                .map(|slot| self.load(usize::from(slot)))
                .collect(),
        )
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

    /// The slots in which `tags` are, each once. They are the same in every process.
    pub fn slots(tags: &[Tag]) -> Vec<u16> {
        let mut slots: Vec<_> = tags.iter().map(|tag| Self::index(*tag) as u16).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// How many slots there are.
    pub fn slot_count(&self) -> usize {
        self.versions.len()
    }

    /// Ends every answer that depends on a tag in this slot, as another instance tells.
    pub fn bump_slot(&self, slot: u16) {
        if let Some(version) = self.versions.get(usize::from(slot)) {
            version.fetch_add(HARD_ONE, Ordering::SeqCst);
        }
    }

    /// Keeps nothing that depends on a tag in this slot until `wait` has passed, or until
    /// [`settle_slot`](Self::settle_slot) says that `batch` is done. No batch can say that of two writes: then, and
    /// without a batch, time alone does.
    pub fn unsettle_slot(&self, slot: u16, now: Instant, wait: Duration, batch: Option<Batch>) {
        let (now, until) = (self.millis(now), self.millis(now + wait));
        let batch = batch.map_or(0, |batch| u64::from(batch.digest()));
        let next = |mark: u64| {
            let held = mark >> BATCH_BITS;
            Some(held.max(until) << BATCH_BITS | if held <= now { batch } else { 0 })
        };
        if let Some(mark) = self.unsettled.get(usize::from(slot)) {
            // Cannot fail: `next` always has a value.
            let _ = mark.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        }
    }

    /// The slots that are unsettled until after `then`, and until when.
    pub fn unsettled_after(&self, then: Instant) -> impl Iterator<Item = (u16, Instant)> + '_ {
        let then = self.millis(then);
        let held = move |(slot, mark): (usize, &AtomicU64)| {
            let until = mark.load(Ordering::SeqCst) >> BATCH_BITS;
            (until > then).then(|| (slot as u16, self.epoch + Duration::from_millis(until)))
        };
        self.unsettled.iter().enumerate().filter_map(held)
    }

    /// Dify has done all that it had to do for `batch`. What depends on a tag in this slot may be stored again if
    /// that is what it waited for, and nothing else; whether it was.
    pub fn settle_slot(&self, slot: u16, batch: Batch) -> bool {
        let next = |mark| (mark & BATCH == u64::from(batch.digest())).then_some(0);
        let mark = self.unsettled.get(usize::from(slot));
        mark.is_some_and(|mark| {
            mark.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
                .is_ok()
        })
    }

    /// Whether what depends on `tag` waits for `batch` alone.
    pub fn waits_for(&self, tag: Tag, batch: Batch) -> bool {
        self.unsettled[Self::index(tag)].load(Ordering::SeqCst) & BATCH == u64::from(batch.digest())
    }

    /// Makes every answer stale that depends on a tag in this slot.
    pub fn mark_slot_stale(&self, slot: u16) {
        if let Some(version) = self.versions.get(usize::from(slot)) {
            mark(version);
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
    /// are not stored for a while, see [`unsettle_slot`](Self::unsettle_slot).
    pub fn bump_unsettled(&self, tags: &[Tag], now: Instant, wait: Duration, batch: Option<Batch>) {
        for slot in Self::slots(tags) {
            self.unsettle_slot(slot, now, wait, batch);
        }
        self.bump(tags);
    }

    /// Ends what depends on `tags`, which `batch` has changed until now, and lets it be stored anew where nothing
    /// else is waited for; whether there is any such.
    pub fn settle(&self, tags: &[Tag], batch: Batch) -> bool {
        // First, so that nothing is stored that was fetched while the work went on.
        self.bump(tags);
        let settle = |any, slot| self.settle_slot(slot, batch) || any;
        Self::slots(tags).into_iter().fold(false, settle)
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
    /// The slots of the table that they are of.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().map(|version| (version >> INDEX_SHIFT) as u16)
    }

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

//! What exists of one kind of id: a Bloom filter that is read without a lock.
//!
//! Readers take one immutable snapshot: up to four generations of filters, and beside them the recent ids,
//! which are exact. Writers take turns; when the recent ids are many they go into a copy of the newest generation,
//! and the copy takes its place. A [`Rebuild`] fills new generations beside the live ones and takes their place as a
//! whole, so that what was deleted falls out.
//!
//! **The promise.** What was inserted is contained at once and until a rebuild ends without it. One generation keeps
//! to the rate that was asked for; a filter that had to grow keeps below twice that rate until it is rebuilt, for
//! each generation has twice the room and half the rate of the one before. It grows to [`MOST_GROWTH`] times the
//! expected ids; beyond that the newest generation is overfilled: memory stays, the rate rises, nothing is lost. A
//! rebuild makes one generation of the right size, up to the same bound. While recent ids are taken in, or a rebuild
//! runs, there is a second copy.

mod generations;
mod recent;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::generations::Generations;
pub use self::generations::{MOST_GENERATIONS, MOST_GROWTH};
use self::recent::Recent;
use crate::types::known::KnownId;

/// Expected ids beyond which a filter is not made larger.
const MOST_EXPECTED: usize = 100_000_000;

/// How large a filter is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizing {
    /// Ids that are expected; taken as from 1 to 100 million.
    pub expected_items: usize,
    /// Of ids that were never inserted, the part that is said to be contained; taken as from 1e-6 to 0.5.
    pub false_positive_rate: f64,
}

/// A filter's state, for metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Ids held. Those that seemed to be contained before they were inserted do not count.
    pub items: usize,
    /// Bytes of the filters and the recent ids.
    pub bytes: usize,
    /// The rate of false positives that follows from sizes and fill, from 0 to 1.
    pub estimated_false_positive_rate: f64,
    /// Generations asked; 0 while all ids are recent ones.
    pub generations: usize,
    /// Time since a rebuild took its place; `None` before the first.
    pub age: Option<Duration>,
}

/// The ids of one kind; clones are handles to the same filter.
#[derive(Debug, Clone)]
pub struct Filter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sizing: Sizing,
    /// Filters hold a digest of ids: it is counted once for all generations. Its seed is this process's.
    digest: ahash::RandomState,
    live: ArcSwap<Snapshot>,
    /// Whose turn it is to write holds this: what a rebuild has so far.
    rebuilt: Mutex<Option<Generations>>,
}

/// What readers see.
#[derive(Debug, Clone)]
struct Snapshot {
    generations: Generations,
    recent: Arc<Recent>,
    /// Whether what seems to be contained must be inserted all the same: a rebuild needs it.
    rebuilding: bool,
    since: Option<Instant>,
}

impl Filter {
    /// An empty filter. It takes its memory as it is filled.
    pub fn new(sizing: Sizing) -> Self {
        let sizing = Sizing {
            expected_items: sizing.expected_items.clamp(1, MOST_EXPECTED),
            false_positive_rate: sizing.false_positive_rate.clamp(1e-6, 0.5),
        };
        let generations = Generations::new(sizing, 0);
        let recent = Recent::beside(generations.room());
        Self(Arc::new(Shared {
            sizing,
            digest: ahash::RandomState::new(),
            live: ArcSwap::from_pointee(Snapshot {
                generations,
                recent,
                rebuilding: false,
                since: None,
            }),
            rebuilt: Mutex::default(),
        }))
    }

    /// Whether the id may exist: `false` is certain. Never waits.
    pub fn contains(&self, id: &KnownId) -> bool {
        self.0.live.load().contains(self.0.digest(id))
    }

    /// From now on the id is contained.
    pub fn insert(&self, id: KnownId) {
        let digest = self.0.digest(&id);
        let live = self.0.live.load();
        // Ids come again and again; only new ones wait for their turn.
        if !live.rebuilding && live.contains(digest) {
            return;
        }
        drop(live);
        let mut rebuilt = self.0.rebuilt.lock();
        if let Some(rebuilt) = &mut *rebuilt {
            rebuilt.add(digest);
        }
        let live = self.0.live.load();
        if live.contains(digest) {
            return;
        }
        live.recent.add(digest);
        if live.recent.is_full() {
            let mut next = Snapshot::clone(&live);
            live.recent
                .digests()
                .for_each(|digest| next.generations.add(digest));
            next.recent = Recent::beside(next.generations.room());
            self.0.live.store(Arc::new(next));
        }
    }

    /// Begins to gather what exists now: sized for what is there or `expected`, and a quarter more. `None` while
    /// another rebuild runs.
    ///
    /// Whoever gathers begins to read its source after this: what comes into being meanwhile arrives by
    /// [`Filter::insert`] and is kept.
    pub fn begin_rebuild(&self, expected: usize) -> Option<Rebuild> {
        let mut rebuilt = self.0.rebuilt.lock();
        if rebuilt.is_some() {
            return None;
        }
        let mut live = Snapshot::clone(&self.0.live.load());
        let items = live.items().max(expected);
        *rebuilt = Some(Generations::new(self.0.sizing, items.saturating_add(items / 4)));
        live.rebuilding = true;
        self.0.live.store(Arc::new(live));
        drop(rebuilt);
        Some(Rebuild {
            filter: self.clone(),
            finished: None,
        })
    }

    /// The state at `now`.
    pub fn stats(&self, now: Instant) -> Stats {
        let live = self.0.live.load();
        Stats {
            items: live.items(),
            bytes: live.generations.bytes() + live.recent.bytes(),
            estimated_false_positive_rate: live.generations.estimated_rate(),
            generations: live.generations.count(),
            age: live.since.map(|since| now.saturating_duration_since(since)),
        }
    }
}

/// New generations on their way to take the place of the live ones. Dropped before [`Rebuild::finish`], they are
/// forgotten and the filter stays as it is.
#[derive(Debug)]
pub struct Rebuild {
    filter: Filter,
    finished: Option<Instant>,
}

impl Rebuild {
    /// The id exists.
    pub fn insert(&self, id: KnownId) {
        let shared = &self.filter.0;
        let digest = shared.digest(&id);
        if let Some(rebuilt) = &mut *shared.rebuilt.lock() {
            rebuilt.add(digest);
        }
    }

    /// Takes the place of what was there. Of the ids from before only those inserted since
    /// [`Filter::begin_rebuild`], here or into the filter, are contained.
    pub fn finish(mut self, now: Instant) {
        self.finished = Some(now);
    }
}

impl Drop for Rebuild {
    fn drop(&mut self) {
        let shared = &self.filter.0;
        let mut rebuilt = shared.rebuilt.lock();
        let Some(generations) = rebuilt.take() else {
            return;
        };
        let next = match self.finished {
            Some(_) => Snapshot {
                recent: Recent::beside(generations.room()),
                generations,
                rebuilding: false,
                since: self.finished,
            },
            None => Snapshot {
                rebuilding: false,
                ..Snapshot::clone(&shared.live.load())
            },
        };
        shared.live.store(Arc::new(next));
    }
}

impl Shared {
    /// Never 0.
    fn digest(&self, id: &KnownId) -> u64 {
        self.digest.hash_one(u128::from_ne_bytes(id.0)).max(1)
    }
}

impl Snapshot {
    fn contains(&self, digest: u64) -> bool {
        self.generations.contains(digest) || self.recent.contains(digest)
    }

    fn items(&self) -> usize {
        self.generations.items() + self.recent.items()
    }
}

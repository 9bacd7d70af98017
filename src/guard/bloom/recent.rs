//! Ids that came since the newest generation was made: few, exact, and seen by readers as soon as they are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Of the room of a generation, the part that may wait beside it; a copy of it is made as often.
const RECENT_PART: usize = 256;

/// Digests of ids that are in no generation yet: a table with open addressing, at most half full. Only the writer
/// whose turn it is writes; 0 is an empty place.
#[derive(Debug)]
pub(super) struct Recent {
    places: Box<[AtomicU64]>,
    items: AtomicUsize,
}

impl Recent {
    /// Empty, to be kept beside a generation made for so many ids.
    pub(super) fn beside(room: usize) -> Arc<Self> {
        let most = (room / RECENT_PART).max(16);
        Arc::new(Self {
            places: (0..2 * most).map(|_| AtomicU64::new(0)).collect(),
            items: AtomicUsize::new(0),
        })
    }

    pub(super) fn items(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.places)
    }

    /// The places where the digest may be, the likeliest first.
    fn places_of(&self, digest: u64) -> impl Iterator<Item = &AtomicU64> {
        let first = ((u128::from(digest) * self.places.len() as u128) >> 64) as usize;
        self.places[first..].iter().chain(&self.places[..first])
    }

    pub(super) fn contains(&self, digest: u64) -> bool {
        self.places_of(digest)
            .map(|place| place.load(Ordering::Acquire))
            .take_while(|there| *there != 0)
            .any(|there| there == digest)
    }

    pub(super) fn add(&self, digest: u64) {
        if let Some(place) = self
            .places_of(digest)
            .find(|place| place.load(Ordering::Relaxed) == 0)
        {
            place.store(digest, Ordering::Release);
            self.items.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        2 * self.items() >= self.places.len()
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = u64> {
        let digests = self.places.iter().map(|place| place.load(Ordering::Relaxed));
        digests.filter(|digest| *digest != 0)
    }
}

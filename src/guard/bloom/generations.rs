//! Bloom filters that grow by one more when the newest is full.
//!
//! A copy shares every filter that neither side changes: that is how a snapshot stays as it is while the next one
//! is made.

use std::sync::Arc;

use bloomfilter::Bloom;

use super::Sizing;

/// Generations that are asked at most.
pub const MOST_GENERATIONS: usize = 4;

/// Room for so many times the expected ids is made, and no more.
pub const MOST_GROWTH: usize = 16;

/// Filters, the newest last; all but the newest are full.
#[derive(Debug, Clone)]
pub(super) struct Generations {
    sizing: Sizing,
    /// Room of the first one.
    first: usize,
    filters: Vec<Arc<Generation>>,
}

#[derive(Debug, Clone)]
struct Generation {
    bits: Bloom<u64>,
    room: usize,
    items: usize,
}

impl Generations {
    /// Empty; the first one will be made for so many items, within what the sizing allows.
    pub(super) fn new(sizing: Sizing, items: usize) -> Self {
        let most = sizing.expected_items.saturating_mul(MOST_GROWTH);
        Self {
            sizing,
            first: items.clamp(sizing.expected_items, most),
            filters: Vec::new(),
        }
    }

    pub(super) fn contains(&self, digest: u64) -> bool {
        self.filters.iter().any(|filter| filter.bits.check(&digest))
    }

    pub(super) fn items(&self) -> usize {
        self.filters.iter().map(|filter| filter.items).sum()
    }

    pub(super) fn add(&mut self, digest: u64) {
        if self.contains(digest) {
            return;
        }
        let has_room = self
            .filters
            .last()
            .is_some_and(|newest| newest.items < newest.room);
        if !has_room && let Some(next) = self.next() {
            self.filters.push(Arc::new(next));
        }
        if let Some(newest) = self.filters.last_mut() {
            // Copies what a snapshot still has; what is ours alone is changed in its place.
            let newest = Arc::make_mut(newest);
            newest.bits.set(&digest);
            newest.items += 1;
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.filters.len()
    }

    /// Ids for which the newest one is made.
    pub(super) fn room(&self) -> usize {
        self.filters.last().map_or(self.first, |newest| newest.room)
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.filters
            .iter()
            .map(|filter| filter.bits.as_slice().len())
            .sum()
    }

    /// Of what was never added, the part that is contained.
    pub(super) fn estimated_rate(&self) -> f64 {
        let absent = self.filters.iter().map(|filter| 1.0 - filter.estimated_rate());
        1.0 - absent.product::<f64>()
    }

    /// `None` when this is all the room there may be.
    fn next(&self) -> Option<Generation> {
        let wanted = if self.filters.is_empty() {
            self.first
        } else {
            self.room().saturating_mul(2)
        };
        let taken: usize = self.filters.iter().map(|filter| filter.room).sum();
        let most = self.sizing.expected_items.saturating_mul(MOST_GROWTH);
        let room = wanted.min(most - taken);
        if room == 0 || self.filters.len() == MOST_GENERATIONS {
            return None;
        }
        let rate = self.sizing.false_positive_rate / f64::from(1 << self.filters.len());
        Generation::new(room, rate)
    }
}

impl Generation {
    fn new(room: usize, rate: f64) -> Option<Self> {
        // Another seed for each: an id that is contained by chance is not so for ever.
        let random = ahash::RandomState::new();
        let mut seed = [0; 32];
        for (number, word) in seed.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&random.hash_one(number).to_ne_bytes());
        }
        let bits = Bloom::new_for_fp_rate_with_seed(room, rate, &seed).ok()?;
        Some(Self { bits, room, items: 0 })
    }

    /// The part of its bits that is set, to the power of the number of bits per id.
    fn estimated_rate(&self) -> f64 {
        let hashes = f64::from(self.bits.number_of_hash_functions());
        let clear = (-hashes * self.items as f64 / self.bits.len() as f64).exp();
        (1.0 - clear).powf(hashes)
    }
}

//! What exists of one kind: Bloom filters (Bloom 1970) that readers ask without a lock.
//!
//! Everything that is asked is a snapshot that never changes; a change puts another in its place. New ids are first in
//! a small exact set, and go into the filter many at a time, for that copies it. When a filter has what it is made for,
//! one of twice the size and half the rate is put beside it (Almeida et al. 2007), so that all together stay under
//! twice the rate; a rebuild makes one of them again and leaves out what was deleted.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bloomfilter::Bloom;
use parking_lot::Mutex;

use crate::types::known::KnownId;

/// New ids that are kept exactly.
const RECENT: usize = 1024;
/// Filters side by side; beyond them the rate rises.
const MOST_LAYERS: usize = 8;

/// How a filter is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizing {
    /// Ids that it is made for; at least 1024 are assumed.
    pub expected_items: u64,
    /// The share of other ids that it takes for one of them, between 0 and 1.
    pub false_positive_rate: f64,
}

/// What one can see of a [`Filter`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FilterStats {
    /// Ids in it, as far as it could tell them apart.
    pub items: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// The share of other ids that it takes for known ones, estimated from how full it is.
    pub false_positive_rate: f64,
    /// Filters side by side: more than one since it grew.
    pub layers: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Filter {
    sizing: Sizing,
    seed: [u8; 32],
    now: ArcSwap<Snapshot>,
    /// The filter that is being built, which gets new ids, too. Taken by all who change anything.
    building: Mutex<Option<Layers>>,
}

#[derive(Debug, Clone)]
struct Snapshot {
    layers: Layers,
    recent: HashSet<KnownId, ahash::RandomState>,
}

/// Filters of growing size; new ids go into the last.
#[derive(Debug, Clone)]
struct Layers(Vec<Layer>);

#[derive(Debug, Clone)]
struct Layer {
    bits: Arc<Bloom<[u8; 16]>>,
    items: u64,
    capacity: u64,
    rate: f64,
}

impl Layer {
    fn new(sizing: Sizing, seed: &[u8; 32]) -> Self {
        let capacity = sizing.expected_items.max(RECENT as u64);
        let rate = sizing.false_positive_rate.clamp(1e-9, 0.5);
        let items = usize::try_from(capacity).unwrap_or(usize::MAX);
        let bytes = Bloom::<[u8; 16]>::compute_bitmap_size(items, rate);
        let bits = Bloom::new_with_seed(bytes, items, seed).unwrap_or_else(|why| unreachable!("{why}"));
        Self {
            bits: Arc::new(bits),
            items: 0,
            capacity,
            rate,
        }
    }

    /// The rate as it is filled now.
    fn rate(&self) -> f64 {
        let hashes = f64::from(self.bits.number_of_hash_functions());
        let fill = 1.0 - (-hashes * self.items as f64 / self.bits.len() as f64).exp();
        fill.powf(hashes)
    }
}

impl Layers {
    fn has(&self, id: &KnownId) -> bool {
        self.0.iter().rev().any(|layer| layer.bits.check(&id.0))
    }

    fn add(&mut self, ids: impl IntoIterator<Item = KnownId>, seed: &[u8; 32]) {
        for id in ids {
            if self.has(&id) {
                continue;
            }
            let count = self.0.len();
            let Some(last) = self.0.last_mut() else { return };
            if last.items >= last.capacity && count < MOST_LAYERS {
                let next = Sizing {
                    expected_items: last.capacity.saturating_mul(2),
                    false_positive_rate: last.rate / 2.0,
                };
                self.0.push(Layer::new(next, seed));
            }
            if let Some(last) = self.0.last_mut() {
                // A copy, when a snapshot has it.
                Arc::make_mut(&mut last.bits).set(&id.0);
                last.items += 1;
            }
        }
    }

    fn items(&self) -> u64 {
        self.0.iter().map(|layer| layer.items).sum()
    }
}

impl Filter {
    /// An empty filter; its hashes differ from process to process.
    pub fn new(sizing: Sizing) -> Self {
        let random = ahash::RandomState::new();
        let mut seed = [0; 32];
        for (place, bytes) in seed.chunks_mut(8).enumerate() {
            bytes.copy_from_slice(&random.hash_one(place).to_le_bytes());
        }
        let layers = Layers(vec![Layer::new(sizing, &seed)]);
        let recent = HashSet::default();
        Self {
            sizing,
            seed,
            now: ArcSwap::from_pointee(Snapshot { layers, recent }),
            building: Mutex::default(),
        }
    }

    /// Whether `id` may be one of those that were added; `false` is certain.
    pub fn has(&self, id: &KnownId) -> bool {
        let now = self.now.load();
        now.layers.has(id) || now.recent.contains(id)
    }

    /// Adds ids: whoever asks after this call finds them.
    pub fn add(&self, ids: &[KnownId]) {
        let mut building = self.building.lock();
        if let Some(building) = &mut *building {
            building.add(ids.iter().copied(), &self.seed);
        }
        let now = self.now.load();
        let new: Vec<_> = ids
            .iter()
            .copied()
            .filter(|id| !now.layers.has(id) && !now.recent.contains(id))
            .collect();
        if new.is_empty() {
            return;
        }
        let mut next = Snapshot::clone(&now);
        if next.recent.len() + new.len() > RECENT {
            next.layers.add(next.recent.drain().chain(new), &self.seed);
        } else {
            next.recent.extend(new);
        }
        self.now.store(Arc::new(next));
    }

    /// Begins a filter that is to take the place of this one, made for about `expected` ids; one that was begun before
    /// is dropped.
    pub fn begin_rebuild(&self, expected: u64) {
        let sizing = Sizing {
            expected_items: self
                .sizing
                .expected_items
                .max(expected.saturating_add(expected / 10)),
            ..self.sizing
        };
        *self.building.lock() = Some(Layers(vec![Layer::new(sizing, &self.seed)]));
    }

    /// Adds ids to the filter that is being built, if any.
    pub fn add_to_rebuild(&self, ids: &[KnownId]) {
        if let Some(building) = &mut *self.building.lock() {
            building.add(ids.iter().copied(), &self.seed);
        }
    }

    /// Puts the filter that was built in the place of this one. It has what was put into it and what was added since it
    /// was begun. Whether there was one.
    pub fn finish_rebuild(&self) -> bool {
        let mut building = self.building.lock();
        let Some(layers) = building.take() else {
            return false;
        };
        self.now.store(Arc::new(Snapshot {
            layers,
            recent: HashSet::default(),
        }));
        true
    }

    /// Drops the filter that was being built.
    pub fn abandon_rebuild(&self) {
        *self.building.lock() = None;
    }

    /// What one can see.
    pub fn stats(&self) -> FilterStats {
        let now = self.now.load();
        let layers = &now.layers.0;
        let misses: f64 = layers.iter().map(|layer| 1.0 - layer.rate()).product();
        FilterStats {
            items: now.layers.items() + now.recent.len() as u64,
            bytes: layers.iter().map(|layer| layer.bits.len() / 8).sum(),
            false_positive_rate: 1.0 - misses,
            layers: layers.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> KnownId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        KnownId(bytes)
    }

    fn filter(expected_items: u64) -> Filter {
        Filter::new(Sizing {
            expected_items,
            false_positive_rate: 0.01,
        })
    }

    fn measured(filter: &Filter) -> f64 {
        const PROBES: u64 = 50_000;
        let found = (1 << 40..(1 << 40) + PROBES).filter(|number| filter.has(&id(*number)));
        found.count() as f64 / PROBES as f64
    }

    #[test]
    fn a_million_ids_at_one_percent_take_less_than_1_3_mb_and_keep_the_rate() {
        let filter = filter(1_000_000);
        filter.begin_rebuild(0);
        for page in 0..100 {
            let ids: Vec<_> = (page * 10_000..(page + 1) * 10_000).map(id).collect();
            filter.add_to_rebuild(&ids);
        }
        assert!(filter.finish_rebuild());
        let stats = filter.stats();
        assert!(stats.bytes <= 1_300_000, "{stats:?}");
        let measured = measured(&filter);
        assert!((0.008..0.012).contains(&measured), "{measured}");
        assert!(
            (stats.false_positive_rate - measured).abs() < 0.002,
            "{stats:?}, {measured}"
        );
        assert!((0..1_000_000).step_by(997).all(|number| filter.has(&id(number))));
    }

    #[test]
    fn a_filter_that_grew_forgets_nothing_and_stays_under_twice_the_rate() {
        let filter = filter(2_000);
        let ids: Vec<_> = (0..20_000).map(id).collect();
        ids.chunks(500).for_each(|ids| filter.add(ids));
        assert!(filter.stats().layers > 1);
        assert!(ids.iter().all(|id| filter.has(id)));
        assert!(measured(&filter) < 0.02);
    }

    #[test]
    fn what_was_not_told_again_is_gone_after_a_rebuild() {
        let filter = filter(2_000);
        filter.add(&[id(1), id(2)]);
        filter.begin_rebuild(0);
        filter.add_to_rebuild(&[id(2)]);
        filter.add(&[id(3)]);
        assert!([1, 2, 3].iter().all(|number| filter.has(&id(*number))));
        assert!(filter.finish_rebuild());
        assert!(!filter.has(&id(1)) && filter.has(&id(2)) && filter.has(&id(3)));
        assert_eq!(filter.stats().items, 2);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(Vec<u64>),
        Begin,
        Page(Vec<u64>),
        Finish,
        Abandon,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ids = || proptest::collection::vec(0..4_000_u64, 0..600);
        let step = prop_oneof![
            4 => ids().prop_map(Step::Add),
            1 => Just(Step::Begin),
            2 => ids().prop_map(Step::Page),
            1 => Just(Step::Finish),
            1 => Just(Step::Abandon),
        ];
        proptest::collection::vec(step, 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_that_was_added_is_ever_missing(steps in steps()) {
            let filter = filter(1);
            let (mut known, mut building) = (HashSet::new(), None::<HashSet<u64>>);
            for step in steps {
                match step {
                    Step::Add(ids) => {
                        filter.add(&ids.iter().copied().map(id).collect::<Vec<_>>());
                        known.extend(&ids);
                        if let Some(building) = &mut building {
                            building.extend(&ids);
                        }
                    }
                    Step::Begin => {
                        filter.begin_rebuild(0);
                        building = Some(HashSet::new());
                    }
                    Step::Page(ids) => {
                        filter.add_to_rebuild(&ids.iter().copied().map(id).collect::<Vec<_>>());
                        if let Some(building) = &mut building {
                            building.extend(&ids);
                        }
                    }
                    Step::Finish => {
                        prop_assert_eq!(filter.finish_rebuild(), building.is_some());
                        known = building.take().unwrap_or(known);
                    }
                    Step::Abandon => {
                        filter.abandon_rebuild();
                        building = None;
                    }
                }
                prop_assert!(known.iter().all(|number| filter.has(&id(*number))));
            }
        }
    }
}

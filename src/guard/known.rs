//! What is known to exist, kind by kind, as the sources tell it, and whether that is all there is.
//!
//! A kind is *armed* while a complete source has told all of it and was heard of within `max_age`: only then does what
//! is not here not exist. Kinds that their source reads whole each time (keys, codes) have an exact set besides, so
//! that what was deleted is gone at once; the others have a filter, from which it falls with the next rebuild.
//!
//! What is learnt from Dify's answers or from other instances may be there before the source shows it: it outlasts
//! rebuilds until the source tells it, or should have.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::bloom::{Filter, Rebuild, Sizing, Stats};
use super::known_ids::postgres::OVERLAP;
use super::known_ids::tables::is_exact;
use super::known_ids::{Sink, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::{Clock, Now};

type Ids = HashSet<KnownId, ahash::RandomState>;

/// The most things of one kind that are learnt and not told by the source yet; of further ones it is not remembered.
const MOST_LEARNT: usize = 10_000;

/// How often those are looked through when there are so many.
const PRUNE: Duration = Duration::from_secs(1);

/// Told of kinds of which something that existed is gone.
pub type OnGone = Box<dyn Fn(IdKind) + Send + Sync>;

/// See the module.
pub struct Known {
    kinds: Vec<Kind>,
    clock: Clock,
    epoch: Instant,
    max_age: Duration,
    on_gone: OnGone,
}

struct Kind {
    filter: Filter,
    /// The reading that goes on, and how many it has found.
    rebuild: Mutex<Option<Rebuild>>,
    loading: AtomicU64,
    exact: Option<Exact>,
    /// Until when everything is known, milliseconds since `epoch`; 0 while it is not.
    as_of: AtomicU64,
    /// What was learnt and is not told by the source yet. Taken after `Exact::reading`.
    learnt: Mutex<Learnt>,
    error: Mutex<Option<String>>,
}

/// Ids with the time at which they were learnt.
#[derive(Default)]
struct Learnt {
    ids: HashMap<KnownId, Instant, ahash::RandomState>,
    pruned: Option<Instant>,
}

#[derive(Default)]
struct Exact {
    ids: ArcSwap<Ids>,
    reading: Mutex<Option<Ids>>,
}

/// How one kind stands.
#[derive(Debug, Clone, PartialEq)]
pub struct KindStatus {
    /// The kind.
    pub kind: IdKind,
    /// Whether what is not known of it is refused, in `mode: enforce`.
    pub armed: bool,
    /// How old what is known of all of it is; `None` while not all is known.
    pub age: Option<Duration>,
    /// What could not be read, if the last attempt failed.
    pub error: Option<String>,
    /// What the reading that goes on has found so far.
    pub loading: u64,
    /// Its filter.
    pub filter: Stats,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known")
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}

impl Known {
    /// Nothing is known yet. `on_gone` is called when the source tells that something is gone.
    pub fn new(sizing: Sizing, max_age: Duration, clock: Clock, on_gone: OnGone) -> Arc<Self> {
        let kinds = IdKind::ALL.iter().map(|kind| Kind {
            filter: Filter::new(sizing),
            rebuild: Mutex::default(),
            loading: AtomicU64::new(0),
            exact: is_exact(*kind).then(Exact::default),
            as_of: AtomicU64::new(0),
            learnt: Mutex::default(),
            error: Mutex::default(),
        });
        Arc::new(Self {
            kinds: kinds.collect(),
            epoch: clock.now().monotonic,
            clock,
            max_age,
            on_gone,
        })
    }

    fn kind(&self, kind: IdKind) -> &Kind {
        &self.kinds[kind as usize]
    }

    /// Whether there may be such a thing, as far as is known.
    pub fn has(&self, kind: IdKind, id: &KnownId) -> bool {
        let kind = self.kind(kind);
        match &kind.exact {
            Some(exact) if kind.as_of.load(Ordering::Relaxed) != 0 => exact.ids.load().contains(id),
            _ => kind.filter.contains(id),
        }
    }

    /// Whether all that exists of a kind is known.
    pub fn is_armed(&self, kind: IdKind, now: Instant) -> bool {
        self.age(kind, now).is_some_and(|age| age <= self.max_age)
    }

    fn age(&self, kind: IdKind, now: Instant) -> Option<Duration> {
        match self.kind(kind).as_of.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(now.saturating_duration_since(self.epoch + Duration::from_millis(millis))),
        }
    }

    /// There is such a thing, by Dify's own words or another instance's. Whether that is news.
    pub fn learn(&self, kind: IdKind, id: KnownId) -> bool {
        let now = self.clock.now().monotonic;
        let kind = self.kind(kind);
        let mut reading = kind.exact.as_ref().map(|exact| exact.reading.lock());
        let mut is_told = false;
        if let (Some(exact), Some(reading)) = (&kind.exact, &reading) {
            if exact.ids.load().contains(&id) {
                return false;
            }
            is_told = reading.as_ref().is_some_and(|reading| reading.contains(&id));
        }
        if !is_told {
            let mut learnt = kind.learnt.lock();
            if !learnt.remember(id, now) {
                return false;
            }
        }
        kind.put(&[id], &mut reading);
        true
    }

    /// How every kind stands.
    pub fn status(&self) -> Vec<KindStatus> {
        let now = self.clock.now().monotonic;
        let status = |kind: &IdKind| KindStatus {
            kind: *kind,
            armed: self.is_armed(*kind, now),
            age: self.age(*kind, now),
            error: self.kind(*kind).error.lock().clone(),
            loading: self.kind(*kind).loading.load(Ordering::Relaxed),
            filter: self.kind(*kind).filter.stats(now),
        };
        IdKind::ALL.iter().map(status).collect()
    }

    fn heard(&self, kind: IdKind, as_of: Now) {
        let millis = as_of.monotonic.saturating_duration_since(self.epoch).as_millis() as u64;
        let kind = self.kind(kind);
        kind.as_of.fetch_max(millis.max(1), Ordering::Relaxed);
        *kind.error.lock() = None;
    }
}

impl Learnt {
    /// Whether that is news. When there are too many, those that the source should have told are forgotten first.
    fn remember(&mut self, id: KnownId, now: Instant) -> bool {
        if self.ids.contains_key(&id) {
            return false;
        }
        let may_prune = self.pruned.is_none_or(|at| at + PRUNE <= now);
        if self.ids.len() >= MOST_LEARNT && may_prune {
            self.ids.retain(|_, at| now < *at + OVERLAP);
            self.pruned = Some(now);
        }
        if self.ids.len() < MOST_LEARNT {
            self.ids.insert(id, now);
        }
        true
    }
}

impl Kind {
    /// Puts ids into what is in use and what is being read.
    fn put(&self, ids: &[KnownId], reading: &mut Option<MutexGuard<'_, Option<Ids>>>) {
        ids.iter().for_each(|id| self.filter.insert(*id));
        let Some(exact) = &self.exact else { return };
        if let Some(Some(reading)) = reading.as_deref_mut() {
            reading.extend(ids);
        }
        let now = exact.ids.load();
        if ids.iter().any(|id| !now.contains(id)) && self.as_of.load(Ordering::Relaxed) != 0 {
            let mut next = Ids::clone(&now);
            next.extend(ids);
            exact.ids.store(Arc::new(next));
        }
    }

    /// The source has told these.
    fn told(&self, ids: &[KnownId]) {
        let mut learnt = self.learnt.lock();
        if !learnt.ids.is_empty() {
            for id in ids {
                learnt.ids.remove(id);
            }
        }
    }

    /// Takes ids out of the exact set, if there is one.
    fn remove(&self, ids: &[KnownId]) {
        let Some(exact) = &self.exact else { return };
        let _reading = exact.reading.lock();
        self.told(ids);
        let mut next = Ids::clone(&exact.ids.load());
        next.retain(|id| !ids.contains(id));
        exact.ids.store(Arc::new(next));
    }
}

impl Sink for Known {
    fn begin(&self, kind: IdKind, expected: u64) {
        let now = self.clock.now().monotonic;
        let kind = self.kind(kind);
        let mut reading = kind.exact.as_ref().map(|exact| exact.reading.lock());
        let mut rebuild = kind.rebuild.lock();
        // One that goes on is given up first: there is one at a time.
        *rebuild = None;
        *rebuild = kind
            .filter
            .begin_rebuild(usize::try_from(expected).unwrap_or(usize::MAX));
        kind.loading.store(0, Ordering::Relaxed);
        let mut learnt = kind.learnt.lock();
        if kind.exact.is_none() {
            learnt.ids.retain(|_, at| now < *at + OVERLAP);
        }
        // This reading may come too early for them.
        let late = learnt.ids.iter().filter(|(_, at)| now < **at + OVERLAP);
        let late: Vec<_> = late.map(|(id, _)| *id).collect();
        if let Some(rebuild) = &*rebuild {
            late.iter().for_each(|id| rebuild.insert(*id));
        }
        if let Some(reading) = &mut reading {
            **reading = Some(late.into_iter().collect());
        }
    }

    fn page(&self, kind: IdKind, ids: &[KnownId]) {
        let kind = self.kind(kind);
        let mut reading = kind.exact.as_ref().map(|exact| exact.reading.lock());
        kind.told(ids);
        if let Some(rebuild) = &*kind.rebuild.lock() {
            ids.iter().for_each(|id| rebuild.insert(*id));
        }
        kind.loading.fetch_add(ids.len() as u64, Ordering::Relaxed);
        if let Some(Some(reading)) = reading.as_deref_mut() {
            reading.extend(ids);
        }
    }

    fn complete(&self, kind: IdKind, as_of: Now) {
        let entry = self.kind(kind);
        if let Some(rebuild) = entry.rebuild.lock().take() {
            rebuild.finish(as_of.monotonic);
        }
        entry.loading.store(0, Ordering::Relaxed);
        if let Some(exact) = &entry.exact {
            let mut reading = exact.reading.lock();
            if let Some(ids) = reading.take() {
                exact.ids.store(Arc::new(ids));
            }
        }
        self.heard(kind, as_of);
    }

    fn add(&self, kind: IdKind, ids: &[KnownId]) {
        let kind = self.kind(kind);
        let mut reading = kind.exact.as_ref().map(|exact| exact.reading.lock());
        kind.told(ids);
        kind.put(ids, &mut reading);
    }

    fn gone(&self, kind: IdKind, ids: &[KnownId]) {
        self.kind(kind).remove(ids);
        (self.on_gone)(kind);
    }

    fn up_to_date(&self, kind: IdKind, as_of: Now) {
        let entry = self.kind(kind);
        if entry.as_of.load(Ordering::Relaxed) == 0 {
            return;
        }
        if entry.exact.is_some() {
            // What came and went before the source could tell it.
            let learnt = entry.learnt.lock();
            let over = learnt
                .ids
                .iter()
                .filter(|(_, at)| **at + OVERLAP < as_of.monotonic);
            let over: Vec<_> = over.map(|(id, _)| *id).collect();
            drop(learnt);
            if !over.is_empty() {
                self.gone(kind, &over);
            }
        }
        self.heard(kind, as_of);
    }

    fn failed(&self, kind: IdKind, error: &SourceError) {
        let entry = self.kind(kind);
        *entry.rebuild.lock() = None;
        entry.loading.store(0, Ordering::Relaxed);
        if let Some(exact) = &entry.exact {
            *exact.reading.lock() = None;
        }
        if matches!(error, SourceError::Schema(_)) {
            // It does not pass by itself, and what is new cannot be seen.
            entry.as_of.store(0, Ordering::Relaxed);
        }
        *entry.error.lock() = Some(error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::SystemTime;

    use super::*;

    const SIZING: Sizing = Sizing {
        expected_items: 1024,
        false_positive_rate: 0.001,
    };

    fn id(number: u8) -> KnownId {
        KnownId([number; 16])
    }

    #[test]
    fn a_kind_is_armed_when_all_of_it_is_known_until_its_source_is_silent_for_too_long() {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH);
        let known = Known::new(SIZING, Duration::from_secs(60), clock.clone(), Box::new(|_| {}));
        time.advance(Duration::from_secs(1));
        let armed = || known.is_armed(IdKind::Dataset, clock.now().monotonic);
        known.up_to_date(IdKind::Dataset, clock.now());
        assert!(!armed(), "nothing has been told yet");
        known.begin(IdKind::Dataset, 2);
        known.page(IdKind::Dataset, &[id(1)]);
        assert!(!armed() && !known.has(IdKind::Dataset, &id(1)));
        known.complete(IdKind::Dataset, clock.now());
        assert!(armed() && known.has(IdKind::Dataset, &id(1)) && !known.has(IdKind::Document, &id(1)));
        time.advance(Duration::from_secs(50));
        known.up_to_date(IdKind::Dataset, clock.now());
        time.advance(Duration::from_secs(50));
        known.failed(IdKind::Dataset, &SourceError::Unreachable("no".into()));
        assert!(armed(), "the last filter stays");
        time.advance(Duration::from_secs(11));
        assert!(!armed() && known.has(IdKind::Dataset, &id(1)));
        assert!(known.status().iter().any(|status| status.error.is_some()));
    }

    fn known() -> (Clock, Arc<crate::types::time::ManualTime>, Arc<Known>) {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH);
        let known = Known::new(SIZING, Duration::from_secs(600), clock.clone(), Box::new(|_| {}));
        time.advance(Duration::from_secs(1));
        (clock, time, known)
    }

    #[test]
    fn what_was_learnt_outlasts_a_reading_that_comes_too_early_for_it() {
        for kind in [IdKind::AppKey, IdKind::Dataset] {
            let (clock, time, known) = known();
            let read = |ids: &[KnownId]| {
                known.begin(kind, 0);
                known.page(kind, ids);
                known.complete(kind, clock.now());
                known.up_to_date(kind, clock.now());
            };
            read(&[id(1)]);
            assert!(known.learn(kind, id(2)) && !known.learn(kind, id(2)));
            time.advance(OVERLAP - Duration::from_secs(1));
            read(&[id(1)]);
            assert!(known.has(kind, &id(2)), "{kind:?}");
            // The database had long enough to show it.
            time.advance(Duration::from_secs(2));
            read(&[id(1)]);
            assert!(!known.has(kind, &id(2)) && known.has(kind, &id(1)), "{kind:?}");
        }
    }

    #[test]
    fn a_learnt_key_stays_when_the_database_shows_it_and_ends_when_it_never_does() {
        let (clock, time, known) = known();
        known.begin(IdKind::AppKey, 0);
        known.complete(IdKind::AppKey, clock.now());
        known.learn(IdKind::AppKey, id(1));
        known.learn(IdKind::AppKey, id(2));
        known.add(IdKind::AppKey, &[id(1)]);
        assert!(!known.learn(IdKind::AppKey, id(1)), "that is no news");
        for _ in 0..2 {
            assert!(known.has(IdKind::AppKey, &id(2)));
            time.advance(OVERLAP / 2 + Duration::from_secs(1));
            known.up_to_date(IdKind::AppKey, clock.now());
        }
        assert!(!known.has(IdKind::AppKey, &id(2)) && known.has(IdKind::AppKey, &id(1)));
    }

    #[test]
    fn a_filter_that_takes_a_new_thing_for_another_keeps_no_news_back() {
        let (_clock, _time, known) = known();
        known.add(IdKind::Dataset, &[id(1)]);
        assert!(known.has(IdKind::Dataset, &id(1)) && known.learn(IdKind::Dataset, id(1)));
    }

    #[test]
    fn a_key_that_is_gone_is_unknown_at_once_and_tells_it() {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH);
        let told = Arc::new(AtomicUsize::new(0));
        let tell = told.clone();
        let on_gone = Box::new(move |kind| {
            assert_eq!(kind, IdKind::AppKey);
            tell.fetch_add(1, Ordering::Relaxed);
        });
        let known = Known::new(SIZING, Duration::from_secs(60), clock.clone(), on_gone);
        time.advance(Duration::from_secs(1));
        known.begin(IdKind::AppKey, 2);
        known.page(IdKind::AppKey, &[id(1), id(2)]);
        known.add(IdKind::AppKey, &[id(3)]);
        known.complete(IdKind::AppKey, clock.now());
        known.add(IdKind::AppKey, &[id(4)]);
        assert!(
            [1, 2, 3, 4]
                .iter()
                .all(|number| known.has(IdKind::AppKey, &id(*number)))
        );
        known.gone(IdKind::AppKey, &[id(2)]);
        assert!(!known.has(IdKind::AppKey, &id(2)) && known.has(IdKind::AppKey, &id(4)));
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}

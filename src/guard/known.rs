//! What is known to exist, kind by kind, as the sources tell it, and whether that is all there is.
//!
//! A kind is *armed* while a complete source has told all of it and was heard of within `max_age`: only then does what
//! is not here not exist. Kinds that their source reads whole each time (keys, codes) have an exact set besides, so
//! that what was deleted is gone at once; the others have a filter, from which it falls with the next rebuild.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::bloom::{Filter, Rebuild, Sizing, Stats};
use super::known_ids::tables::{Reading, TABLES};
use super::known_ids::{Sink, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::{Clock, Now};

type Ids = HashSet<KnownId, ahash::RandomState>;

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
    error: Mutex<Option<String>>,
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
        let whole = |kind| {
            let is = |table: &&super::known_ids::tables::Table| {
                table.kind == kind && table.reading == Reading::Whole
            };
            TABLES.iter().find(is).map(|_| Exact::default())
        };
        let kinds = IdKind::ALL.iter().map(|kind| Kind {
            filter: Filter::new(sizing),
            rebuild: Mutex::default(),
            loading: AtomicU64::new(0),
            exact: whole(*kind),
            as_of: AtomicU64::new(0),
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

impl Sink for Known {
    fn begin(&self, kind: IdKind, expected: u64) {
        let kind = self.kind(kind);
        let mut rebuild = kind.rebuild.lock();
        // One that goes on is given up first: there is one at a time.
        *rebuild = None;
        *rebuild = kind
            .filter
            .begin_rebuild(usize::try_from(expected).unwrap_or(usize::MAX));
        drop(rebuild);
        kind.loading.store(0, Ordering::Relaxed);
        if let Some(exact) = &kind.exact {
            *exact.reading.lock() = Some(Ids::default());
        }
    }

    fn page(&self, kind: IdKind, ids: &[KnownId]) {
        let kind = self.kind(kind);
        if let Some(rebuild) = &*kind.rebuild.lock() {
            ids.iter().for_each(|id| rebuild.insert(*id));
        }
        kind.loading.fetch_add(ids.len() as u64, Ordering::Relaxed);
        if let Some(exact) = &kind.exact
            && let Some(reading) = &mut *exact.reading.lock()
        {
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
        ids.iter().for_each(|id| kind.filter.insert(*id));
        if let Some(exact) = &kind.exact {
            let mut reading = exact.reading.lock();
            if let Some(reading) = &mut *reading {
                reading.extend(ids);
            }
            let now = exact.ids.load();
            if ids.iter().any(|id| !now.contains(id)) && kind.as_of.load(Ordering::Relaxed) != 0 {
                let mut next = Ids::clone(&now);
                next.extend(ids);
                exact.ids.store(Arc::new(next));
            }
        }
    }

    fn gone(&self, kind: IdKind, ids: &[KnownId]) {
        if let Some(exact) = &self.kind(kind).exact {
            let _reading = exact.reading.lock();
            let mut next = Ids::clone(&exact.ids.load());
            next.retain(|id| !ids.contains(id));
            exact.ids.store(Arc::new(next));
        }
        (self.on_gone)(kind);
    }

    fn up_to_date(&self, kind: IdKind, as_of: Now) {
        if self.kind(kind).as_of.load(Ordering::Relaxed) != 0 {
            self.heard(kind, as_of);
        }
    }

    fn failed(&self, kind: IdKind, error: &SourceError) {
        let entry = self.kind(kind);
        *entry.rebuild.lock() = None;
        entry.loading.store(0, Ordering::Relaxed);
        if let Some(exact) = &entry.exact {
            *exact.reading.lock() = None;
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

//! The model's database, and one instance's way of reading it: the order of calls and the overlaps of the real source
//! over rows in memory, with what it has told written down.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::guard::known::Known;
use crate::guard::known_ids::postgres::OVERLAP;
use crate::guard::known_ids::tables::{Reading, TABLES};
use crate::guard::known_ids::{Lookup, Sink as _, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::Clock;

/// How often what is new is read, and everything.
const REFRESH: Duration = Duration::from_secs(5);
const REBUILD: Duration = Duration::from_secs(40);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a query takes, and how long one that hangs.
const TAKES: Duration = Duration::from_millis(4);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Rows of a page.
const PAGE: usize = 64;

/// How the database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Fails,
    Hangs,
}

pub(super) struct Row {
    pub(super) kind: IdKind,
    pub(super) id: KnownId,
    pub(super) created_at: Instant,
    pub(super) visible_at: Instant,
    pub(super) gone_at: Option<Instant>,
}

impl Row {
    pub(super) fn is_visible(&self, now: Instant) -> bool {
        self.visible_at <= now && self.gone_at.is_none()
    }
}

pub(super) struct Database {
    pub(super) rows: Vec<Row>,
    pub(super) mood: Mood,
}

/// What one source has done.
#[derive(Default)]
pub(super) struct Told {
    /// What it has handed over.
    pub(super) ids: HashSet<(IdKind, KnownId)>,
    /// When the last good reading of a kind began.
    pub(super) read: HashMap<IdKind, Instant>,
    /// Every query of single ids.
    pub(super) looked: Vec<(Instant, Vec<KnownId>)>,
    /// The kinds of which the last such query failed: of these the next one is let alone.
    pub(super) in_doubt: HashSet<IdKind>,
}

pub(super) struct Source {
    database: Arc<Mutex<Database>>,
    known: Arc<Known>,
    pub(super) told: Mutex<Told>,
    progress: HashMap<IdKind, tokio::sync::Mutex<Progress>>,
}

#[derive(Default)]
struct Progress {
    since: Option<Instant>,
    exact: HashSet<KnownId>,
}

pub(super) fn now() -> Instant {
    Clock::System.now().monotonic
}

fn reading(kind: IdKind) -> Reading {
    let table = TABLES.iter().find(|table| table.kind == kind);
    table.expect("a kind with a table").reading
}

/// Whether a deleted thing of this kind is noticed with the next refresh.
pub(super) fn is_whole(kind: IdKind) -> bool {
    reading(kind) == Reading::Whole
}

impl Source {
    pub(super) fn new(database: &Arc<Mutex<Database>>, known: &Arc<Known>, kinds: &[IdKind]) -> Arc<Self> {
        let progress = kinds
            .iter()
            .map(|kind| (*kind, tokio::sync::Mutex::default()))
            .collect();
        Arc::new(Self {
            database: database.clone(),
            known: known.clone(),
            told: Mutex::default(),
            progress,
        })
    }

    /// The rows that a query finds, in the order of their keys.
    async fn query(&self, kind: IdKind, wanted: impl Fn(&Row) -> bool) -> Result<Vec<KnownId>, SourceError> {
        let mood = self.database.lock().mood;
        match mood {
            Mood::Well => tokio::time::sleep(TAKES).await,
            Mood::Fails => {}
            Mood::Hangs => tokio::time::sleep(TIMEOUT).await,
        }
        if mood != Mood::Well {
            return Err(SourceError::Unreachable("gone".into()));
        }
        let (now, database) = (now(), self.database.lock());
        let found = database
            .rows
            .iter()
            .filter(|row| row.kind == kind && row.is_visible(now) && wanted(row));
        let mut ids: Vec<_> = found.map(|row| row.id).collect();
        ids.sort_unstable_by_key(|id| id.0);
        Ok(ids)
    }

    async fn pages(&self, kind: IdKind, mut take: impl FnMut(&[KnownId])) -> Result<(), SourceError> {
        let mut after = [0; 16];
        loop {
            let mut ids = self.query(kind, |row| row.id.0 > after).await?;
            ids.truncate(PAGE);
            take(&ids);
            match ids.last().filter(|_| ids.len() == PAGE) {
                Some(last) => after = last.0,
                None => return Ok(()),
            }
        }
    }

    /// Hands on what is new since then.
    async fn new_rows(&self, kind: IdKind, since: Instant) -> Result<Vec<KnownId>, SourceError> {
        let ids = self.query(kind, |row| row.created_at + OVERLAP > since).await?;
        self.known.add(kind, &ids);
        self.tell(kind, &ids);
        Ok(ids)
    }

    fn tell(&self, kind: IdKind, ids: &[KnownId]) {
        let ids = ids.iter().map(|id| (kind, *id));
        self.told.lock().ids.extend(ids);
    }

    /// Reads one kind: everything, or what is new.
    pub(super) async fn read(&self, kind: IdKind, whole: bool) -> bool {
        let mut progress = self.progress[&kind].lock().await;
        let as_of = Clock::System.now();
        let whole = whole || progress.since.is_none();
        let result = match reading(kind) {
            Reading::Whole => self.read_exact(kind, &mut progress, whole).await,
            Reading::Increments if whole => self.load(kind, &mut progress).await,
            Reading::Increments => {
                let since = progress.since.unwrap_or(as_of.monotonic);
                let read = self.new_rows(kind, since).await;
                read.map(|_| progress.since = Some(as_of.monotonic))
            }
        };
        match &result {
            Ok(()) => {
                self.known.up_to_date(kind, as_of);
                self.told.lock().read.insert(kind, as_of.monotonic);
            }
            Err(error) => self.known.failed(kind, error),
        }
        result.is_ok()
    }

    async fn load(&self, kind: IdKind, progress: &mut Progress) -> Result<(), SourceError> {
        let as_of = Clock::System.now();
        self.known.begin(kind, 0);
        let mut found = Vec::new();
        let take = |ids: &[KnownId]| {
            self.known.page(kind, ids);
            found.extend_from_slice(ids);
        };
        self.pages(kind, take).await?;
        self.new_rows(kind, as_of.monotonic).await?;
        self.known.complete(kind, as_of);
        self.tell(kind, &found);
        progress.since = Some(as_of.monotonic);
        Ok(())
    }

    async fn read_exact(
        &self,
        kind: IdKind,
        progress: &mut Progress,
        whole: bool,
    ) -> Result<(), SourceError> {
        let as_of = Clock::System.now();
        if whole {
            self.known.begin(kind, 0);
        }
        let mut found = HashSet::new();
        let take = |ids: &[KnownId]| {
            found.extend(ids.iter().copied());
            if whole {
                self.known.page(kind, ids);
            }
        };
        self.pages(kind, take).await?;
        let new: Vec<_> = found.difference(&progress.exact).copied().collect();
        let gone: Vec<_> = progress.exact.difference(&found).copied().collect();
        if whole {
            self.known.complete(kind, as_of);
        } else {
            self.known.add(kind, &new);
        }
        self.tell(kind, &new);
        if !gone.is_empty() {
            self.known.gone(kind, &gone);
        }
        (progress.since, progress.exact) = (Some(as_of.monotonic), found);
        Ok(())
    }

    async fn which(&self, kind: IdKind, ids: &[KnownId]) -> Result<HashSet<KnownId>, SourceError> {
        if !is_whole(kind) {
            let found = self.query(kind, |row| ids.contains(&row.id)).await?;
            self.tell(kind, &found);
            return Ok(found.into_iter().collect());
        }
        let mut progress = self.progress[&kind].lock().await;
        let since = progress.since.ok_or(SourceError::Unknown(kind))?;
        let new = self.new_rows(kind, since).await?;
        progress.exact.extend(new);
        Ok(progress.exact.clone())
    }

    /// Reads a kind again and again.
    pub(super) async fn keep(&self, kind: IdKind) {
        let mut rebuild_at = now() + REBUILD;
        loop {
            let whole = now() >= rebuild_at;
            let done = self.read(kind, whole).await;
            if done && whole {
                rebuild_at = now() + REBUILD;
            }
            tokio::time::sleep(if done { REFRESH } else { AGAIN }).await;
        }
    }
}

impl Lookup for Source {
    fn which_exist<'a>(
        &'a self,
        kind: IdKind,
        ids: &'a [KnownId],
    ) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        self.told.lock().looked.push((now(), ids.to_vec()));
        Box::pin(async move {
            let found = self.which(kind, ids).await;
            let mut told = self.told.lock();
            if found.is_err() {
                told.in_doubt.insert(kind);
            } else {
                told.in_doubt.remove(&kind);
            }
            let found = found?;
            Ok(ids.iter().map(|id| found.contains(id)).collect())
        })
    }
}

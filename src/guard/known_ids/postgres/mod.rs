//! Dify's own database as the source of what exists: read-only, in pages, on a few connections.
//!
//! Each kind is read whole once ([`Postgres::rebuild_once`]), then every `refresh` for what is new, then whole again
//! every `rebuild`. A kind that cannot be read says why and leaves the others alone; a database that is gone is tried
//! again ever more seldom. Nothing here waits without end, and no more than a page of rows is in memory.

mod pool;
mod statements;
mod tls;
mod values;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use self::pool::Pool;
use self::statements::{Statements, page, wrong};
#[cfg(fuzzing)]
pub(in crate::guard) use self::tls::read_anything;
use self::values::{Timestamp, Uuid};
use super::tables::{Reading, TABLES, Table};
use super::{Lookup, Sink, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::{Clock, Now};

/// A row may be committed this long after the time in its `created_at`, and a replica may be this far behind.
pub const OVERLAP: Duration = Duration::from_secs(60);
/// Without an index on `created_at` a refresh reads the whole table: then it comes so seldom that it takes at most
/// one part in so many of the time.
const SHARE: u32 = 20;
/// And never more seldom than that.
const LONGEST_REFRESH: Duration = Duration::from_secs(300);
/// When a refresh finds more pages than that, reading the whole table is cheaper.
const MOST_NEW_PAGES: usize = 16;
/// A table that is read whole each time must not have more rows; 16 bytes of memory for each.
const MOST_WHOLE: usize = 1_000_000;
/// Progress of a long reading is logged each time it has got on by so many pages.
const PAGES_PER_LOG: usize = 100;

/// What the source has to be told.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`, with `sslmode` (`disable`, `prefer`, `require`, `verify-full`)
    /// and `sslrootcert` (a PEM file) if wanted.
    pub url: String,
    /// How often to look for what is new. At least; a slow table is asked more seldom.
    pub refresh: Duration,
    /// How often to read everything, so that what was deleted falls out.
    pub rebuild: Duration,
    /// How many connections the database grants us.
    pub connections: usize,
    /// The part of them that is used at most, 0 to 1; one is always used.
    pub pool_share: f64,
    /// Rows per page.
    pub page: usize,
    /// The longest that one statement may take, and the wait for a connection.
    pub timeout: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            refresh: Duration::from_secs(5),
            rebuild: Duration::from_secs(3600),
            connections: 5,
            pool_share: 0.8,
            page: 10_000,
            timeout: Duration::from_secs(10),
        }
    }
}

/// How the source stands.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Whether the last that was heard of the database was good.
    pub connected: bool,
    /// Connections that are open and not in use.
    pub idle_connections: usize,
    /// When a kind was last read with success.
    pub last_success: Option<Now>,
    /// Each kind that has a table, in the order of [`TABLES`].
    pub kinds: Vec<(IdKind, KindState)>,
}

/// How the reading of one kind stands.
#[derive(Debug, Clone, Default)]
pub struct KindState {
    /// When the last complete reading began.
    pub loaded_at: Option<Now>,
    /// When the last successful look for what is new began.
    pub fresh_at: Option<Now>,
    /// How many the last complete reading found.
    pub items: u64,
    /// How many the reading that goes on has found so far.
    pub loading: Option<u64>,
    /// Why the last attempt failed.
    pub error: Option<SourceError>,
}

/// The source.
pub struct Postgres<S: ?Sized> {
    options: PostgresOptions,
    page: i64,
    pool: Pool,
    sink: Arc<S>,
    clock: Clock,
    kinds: Vec<Kind>,
}

struct Kind {
    table: &'static Table,
    sql: Statements,
    state: Mutex<KindState>,
    /// Held while the kind is read, so that readings come one after the other.
    progress: tokio::sync::Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The database's clock when the last successful reading began; none before the first complete one.
    since: Option<Timestamp>,
    /// How long the database took for the last look for what is new.
    cost: Duration,
    /// Everything that is there, of a kind that is read whole each time.
    exact: AHashSet<KnownId>,
}

impl<S: Sink + ?Sized> Postgres<S> {
    /// Reads the URL; connects to nothing yet. Everything found goes to `sink`.
    ///
    /// # Errors
    /// When the URL cannot be used; says why, without showing it.
    pub fn new(options: PostgresOptions, sink: Arc<S>, clock: Clock) -> Result<Self, String> {
        let (config, tls) = tls::configure(&options.url)?;
        let size = (options.connections as f64 * options.pool_share) as usize;
        let pool = Pool::new(config, tls, size.max(1), options.timeout, clock.clone());
        let kinds = TABLES.iter().map(|table| Kind {
            table,
            sql: Statements::of(table),
            state: Mutex::default(),
            progress: tokio::sync::Mutex::default(),
        });
        Ok(Self {
            page: options.page.clamp(1, 1_000_000) as i64,
            kinds: kinds.collect(),
            options,
            pool,
            sink,
            clock,
        })
    }

    /// Reads everything, then what is new, for as long as it is polled.
    pub async fn run(&self) {
        join_all(self.kinds.iter().map(|kind| self.keep(kind))).await;
    }

    /// Looks once for what is new in all kinds; reads whole what has not been yet.
    pub async fn refresh_once(&self) {
        join_all(self.kinds.iter().map(|kind| self.read(kind, false))).await;
        self.pool.close_idle();
    }

    /// Reads all kinds whole once.
    pub async fn rebuild_once(&self) {
        join_all(self.kinds.iter().map(|kind| self.read(kind, true))).await;
        self.pool.close_idle();
    }

    /// Whether there is such a thing now, for who has not read everything: of a kind that is known by a text all is
    /// read first.
    ///
    /// # Errors
    /// When the database cannot tell.
    pub async fn look_once(&self, kind: IdKind, id: KnownId) -> Result<bool, SourceError> {
        let of_text = |known: &&Kind| known.table.kind == kind && known.table.text.is_some();
        if let Some(known) = self.kinds.iter().find(of_text)
            && !self.read(known, true).await
        {
            let error = known.state.lock().error.clone();
            return Err(error.unwrap_or(SourceError::Unknown(kind)));
        }
        let found = self.which_exist(kind, &[id]).await?;
        Ok(found.first().copied().unwrap_or(false))
    }

    /// Closes connections that have not been used for 300 s; the others do it as well when they are done.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// How the source stands now.
    pub fn state(&self) -> State {
        let kinds: Vec<_> = self
            .kinds
            .iter()
            .map(|kind| (kind.table.kind, kind.state.lock().clone()))
            .collect();
        State {
            connected: self.pool.is_connected(),
            idle_connections: self.pool.idle(),
            last_success: kinds
                .iter()
                .filter_map(|(_, kind)| kind.fresh_at)
                .max_by_key(|now| now.monotonic),
            kinds,
        }
    }

    /// The sink.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    async fn keep(&self, kind: &Kind) {
        let mut failures = 0;
        let mut rebuild_at = self.clock.now().monotonic + self.options.rebuild;
        loop {
            let whole = self.clock.now().monotonic >= rebuild_at;
            let done = self.read(kind, whole).await;
            let least = if done {
                failures = 0;
                if whole {
                    rebuild_at = self.clock.now().monotonic + self.options.rebuild;
                }
                self.options.refresh
            } else {
                failures += 1;
                pool::pause(failures)
            };
            let rest = share(kind.progress.lock().await.cost);
            tokio::time::sleep(least.max(rest)).await;
            self.pool.close_idle();
        }
    }

    /// Reads one kind, and tells the sink and the state how it went.
    async fn read(&self, kind: &Kind, whole: bool) -> bool {
        let mut progress = kind.progress.lock().await;
        let begun = self.clock.now().monotonic;
        let result = match kind.table.reading {
            Reading::Whole => self.read_exact(kind, &mut progress, whole).await,
            Reading::Increments if whole || progress.since.is_none() => self.load(kind, &mut progress).await,
            Reading::Increments => self.read_new(kind, &mut progress).await,
        };
        kind.state.lock().loading = None;
        match result {
            Ok(as_of) => {
                self.fresh(kind, as_of);
                true
            }
            Err(error) => {
                if matches!(error, SourceError::Refused(_)) {
                    progress.cost = self.clock.now().monotonic - begun;
                }
                if matches!(error, SourceError::Schema(_)) {
                    // Once it is put right, all of it is read again.
                    progress.since = None;
                }
                self.sink.failed(kind.table.kind, &error);
                let before = kind.state.lock().error.replace(error.clone());
                // That the database is gone is logged once for all kinds.
                if !matches!(error, SourceError::Unreachable(_)) && before.as_ref() != Some(&error) {
                    tracing::warn!(kind = kind.table.kind.as_str(), %error, "what exists cannot be read");
                }
                false
            }
        }
    }

    /// The database's clock, and about how many rows there are.
    async fn start(&self, kind: &Kind) -> Result<(Timestamp, u64), SourceError> {
        let params = [(&kind.table.name as _, Type::TEXT)];
        let (rows, _) = match self.pool.read(kind.sql.start, &params).await {
            Ok(rows) => rows,
            Err(error) => return Err(wrong(&self.pool, kind.table, error).await),
        };
        let form = |error: tokio_postgres::Error| SourceError::Refused(error.to_string());
        let row = rows.first().ok_or(SourceError::Unknown(kind.table.kind))?;
        let rows: i64 = row.try_get(1).map_err(form)?;
        Ok((row.try_get(0).map_err(form)?, rows.max(0) as u64))
    }

    /// All pages of the table, in the order of the primary key: how many ids there are, and how long it took.
    async fn pages(
        &self,
        kind: &Kind,
        mut take: impl FnMut(&[KnownId]),
    ) -> Result<(u64, Duration), SourceError> {
        let (mut items, mut cost) = (0, Duration::ZERO);
        let mut after = None;
        for number in 1.. {
            let sql = if after.is_some() {
                &kind.sql.next_page
            } else {
                &kind.sql.first_page
            };
            let found = page(&self.pool, kind.table, sql, self.page, after).await?;
            take(&found.ids);
            items += found.ids.len() as u64;
            cost += found.took;
            kind.state.lock().loading = Some(items);
            if number % PAGES_PER_LOG == 0 {
                tracing::info!(kind = kind.table.kind.as_str(), items, "reading what exists");
            }
            after = found.last.map(|last| (None, last));
            if !found.full {
                break;
            }
        }
        Ok((items, cost))
    }

    /// Hands on what is new since then, with the overlap, in at most so many pages: whether that was all, and how long
    /// it took.
    async fn new_pages(
        &self,
        kind: &Kind,
        since: Timestamp,
        most: usize,
        mut take: impl FnMut(&[KnownId]),
    ) -> Result<(bool, Duration), SourceError> {
        let mut after = (since.earlier(OVERLAP), Uuid::NIL);
        let mut cost = Duration::ZERO;
        for _ in 0..most {
            let place = Some((Some(after.0), after.1));
            let found = page(&self.pool, kind.table, &kind.sql.since, self.page, place).await?;
            take(&found.ids);
            self.sink.add(kind.table.kind, &found.ids);
            cost += found.took;
            match found.last_since.zip(found.last).filter(|_| found.full) {
                Some(last) => after = last,
                None => return Ok((true, cost)),
            }
        }
        Ok((false, cost))
    }

    /// A reading of the whole, told to the sink but for its end. What is new is not kept waiting until then.
    async fn load(&self, kind: &Kind, progress: &mut Progress) -> Result<Now, SourceError> {
        let as_of = self.clock.now();
        let (start, expected) = self.start(kind).await?;
        let (id, sink) = (kind.table.kind, &self.sink);
        sink.begin(id, expected);
        let done = CancellationToken::new();
        let reading = async {
            let read = self.pages(kind, |ids| sink.page(id, ids)).await;
            done.cancel();
            read
        };
        let looking = async {
            while progress.since.is_some() {
                let pause = self.options.refresh.max(share(progress.cost));
                if timeout(pause, done.cancelled()).await.is_ok() {
                    break;
                }
                if let Some(now) = self.catch_up(kind, progress).await? {
                    self.fresh(kind, now);
                }
            }
            Ok(())
        };
        let (read, looked) = tokio::join!(reading, looking);
        let (items, _) = looked.and(read)?;
        // Rows that appeared before the place where the reading was.
        let (_, cost) = self.new_pages(kind, start, usize::MAX, |_| ()).await?;
        self.loaded(kind, items, as_of);
        (progress.since, progress.cost) = (Some(start), cost);
        Ok(as_of)
    }

    fn loaded(&self, kind: &Kind, items: u64, as_of: Now) {
        self.sink.complete(kind.table.kind, as_of);
        let mut state = kind.state.lock();
        state.items = items;
        if state.loaded_at.replace(as_of).is_none() {
            tracing::info!(
                kind = kind.table.kind.as_str(),
                items,
                "what exists has been read"
            );
        }
    }

    fn fresh(&self, kind: &Kind, as_of: Now) {
        let mut state = kind.state.lock();
        state.fresh_at = Some(as_of);
        state.error = None;
        drop(state);
        self.sink.up_to_date(kind.table.kind, as_of);
    }

    /// Hands on what is new since the last time; none if that is too much for this way.
    async fn catch_up(&self, kind: &Kind, progress: &mut Progress) -> Result<Option<Now>, SourceError> {
        let as_of = self.clock.now();
        let (start, _) = self.start(kind).await?;
        let since = progress.since.unwrap_or(start);
        let (all, cost) = self.new_pages(kind, since, MOST_NEW_PAGES, |_| ()).await?;
        progress.cost = cost;
        if !all {
            return Ok(None);
        }
        progress.since = Some(start);
        Ok(Some(as_of))
    }

    async fn read_new(&self, kind: &Kind, progress: &mut Progress) -> Result<Now, SourceError> {
        match self.catch_up(kind, progress).await? {
            Some(as_of) => Ok(as_of),
            None => self.load(kind, progress).await,
        }
    }

    async fn read_exact(
        &self,
        kind: &Kind,
        progress: &mut Progress,
        whole: bool,
    ) -> Result<Now, SourceError> {
        let as_of = self.clock.now();
        let (start, expected) = self.start(kind).await?;
        let (id, sink) = (kind.table.kind, &self.sink);
        let whole = whole || progress.since.is_none();
        if whole {
            sink.begin(id, expected);
        }
        let mut found = AHashSet::new();
        let mut too_many = false;
        let take = |ids: &[KnownId]| {
            too_many |= found.len() + ids.len() > MOST_WHOLE;
            if !too_many {
                found.extend(ids);
                if whole {
                    sink.page(id, ids);
                }
            }
        };
        let (items, cost) = self.pages(kind, take).await?;
        if too_many {
            let name = kind.table.name;
            return Err(SourceError::Refused(format!(
                "{name}: more than {MOST_WHOLE} rows"
            )));
        }
        let new: Vec<_> = found.difference(&progress.exact).copied().collect();
        let gone: Vec<_> = progress.exact.difference(&found).copied().collect();
        if whole {
            self.loaded(kind, items, as_of);
        } else {
            sink.add(id, &new);
            kind.state.lock().items = items;
        }
        if !gone.is_empty() {
            sink.gone(id, &gone);
        }
        *progress = Progress {
            since: Some(start),
            cost,
            exact: found,
        };
        Ok(as_of)
    }

    /// Of a kind that is known by a text the database cannot be asked for a digest: reads what came since the last
    /// reading of the whole.
    async fn which_exact(&self, kind: &Kind, ids: &[KnownId]) -> Result<Vec<bool>, SourceError> {
        let mut progress = kind.progress.lock().await;
        let since = progress.since.ok_or(SourceError::Unknown(kind.table.kind))?;
        let exact = &mut progress.exact;
        self.new_pages(kind, since, usize::MAX, |ids| exact.extend(ids))
            .await?;
        Ok(ids.iter().map(|id| progress.exact.contains(id)).collect())
    }

    async fn which(&self, kind: &Kind, ids: &[KnownId]) -> Result<Vec<bool>, SourceError> {
        let mut found = AHashSet::new();
        for some in ids.chunks(self.page as usize) {
            let keys: Vec<_> = some.iter().copied().map(Uuid).collect();
            let (rows, _) = match self
                .pool
                .query(&kind.sql.which, &[(&keys, Type::UUID_ARRAY)])
                .await
            {
                Ok(rows) => rows,
                Err(error) => return Err(wrong(&self.pool, kind.table, error).await),
            };
            found.extend(
                rows.iter()
                    .filter_map(|row| row.try_get::<_, Uuid>(0).ok())
                    .map(|id| id.0),
            );
        }
        Ok(ids.iter().map(|id| found.contains(id)).collect())
    }
}

/// How long to leave the database alone after it worked for so long.
fn share(cost: Duration) -> Duration {
    cost.saturating_mul(SHARE).min(LONGEST_REFRESH)
}

impl<S: Sink + ?Sized> Lookup for Postgres<S> {
    fn which_exist<'a>(
        &'a self,
        kind: IdKind,
        ids: &'a [KnownId],
    ) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        Box::pin(async move {
            let of_kind = |candidate: &&Kind| candidate.table.kind == kind;
            let kind = self
                .kinds
                .iter()
                .find(of_kind)
                .ok_or(SourceError::Unknown(kind))?;
            let found = async {
                match kind.table.text {
                    Some(_) => self.which_exact(kind, ids).await,
                    None => self.which(kind, ids).await,
                }
            };
            let late = |_| Err(SourceError::Unreachable("it takes too long".to_owned()));
            timeout(2 * self.options.timeout, found)
                .await
                .unwrap_or_else(late)
        })
    }
}

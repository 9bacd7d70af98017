//! What instances tell each other by way of Redis: the things that one has learnt, to all others and to those that
//! start later.
//!
//! Both is one stream, `PREFIXknown`, with one thing in each entry ([`entry`]). Who starts reads it from its beginning,
//! then looks every [`POLL`] for what is new; after an outage it goes on where it was. The stream keeps the last
//! [`MOST_KEPT`] things or `expected_items`, if that is less. Nothing on the way of a request waits for Redis: what is
//! told goes into a bounded queue. Nobody depends on it either: what is not heard is found in the database, or looked
//! up, or asked of Dify. As in the cache, fred never connects again by itself; every command has a deadline.

mod entry;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike as _, KeysInterface as _, StreamsInterface as _};
use fred::types::Value;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::entry::{FIELD, Item, Place, encode, entries};
use super::Sink as _;
use super::postgres::OVERLAP;
use super::tables::is_exact;
use crate::config::cache::RedisConfig;
use crate::config::redis::RedisServers;
use crate::guard::known::Known;
use crate::guard::metrics::GuardMetrics;
use crate::types::known::{IdKind, KnownId};
use crate::types::time::Clock;

/// The most things that the stream keeps, about 30 MB of Redis' memory.
const MOST_KEPT: u64 = 1_000_000;
/// How long the stream is kept after something was last told.
const IDLE: Duration = Duration::from_secs(30 * 86_400);
/// How often others are listened to.
const POLL: Duration = Duration::from_millis(250);
/// How long what was learnt waits for more to be told with it.
const GATHER: Duration = Duration::from_millis(20);
/// The most things that wait to be told; then the oldest, which others may have found elsewhere, is dropped.
const MOST_WAITING: usize = 65_536;
/// So many things that were told or heard last are not told again.
const MOST_RECENT: u64 = 65_536;
/// The most entries that are written, and read, with one command or pipeline.
const WRITTEN: usize = 1_000;
const READ: u64 = 10_000;
/// The longest that Redis may take for these, and for connecting.
const DEADLINE: Duration = Duration::from_secs(3);
/// The longest that what is still to be told keeps the process from ending.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Pauses between tries to connect: the first, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Progress of a long reading is logged each time it has got on by so many entries.
const ENTRIES_PER_LOG: u64 = 100_000;

/// See the module.
pub struct Peers {
    servers: RedisServers,
    stream: String,
    kept: i64,
    known: Arc<Known>,
    /// Whether the database tells what exists as well.
    has_database: bool,
    clock: Clock,
    metrics: GuardMetrics,
    waiting: Mutex<VecDeque<Item>>,
    /// Wakes who tells.
    news: Notify,
    recent: Cache<Item, (), ahash::RandomState>,
}

/// How an instance stands with its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PeersReport {
    /// Whether they can be told and heard.
    pub connected: bool,
    /// How many things wait to be told.
    pub waiting: usize,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("servers", &self.servers)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// Connects to nothing yet. What is heard goes to `known`; the stream keeps at most about `expected_items`.
    ///
    /// # Errors
    /// When the URL or the authorities' file cannot be used.
    pub(in crate::guard) fn new(
        redis: &RedisConfig,
        known: Arc<Known>,
        expected_items: u64,
        has_database: bool,
        clock: Clock,
        metrics: GuardMetrics,
    ) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self {
            servers: redis.servers()?,
            stream: format!("{}known", redis.prefix),
            kept: expected_items.min(MOST_KEPT) as i64,
            known,
            has_database,
            clock,
            metrics,
            waiting: Mutex::default(),
            news: Notify::new(),
            recent: Cache::builder()
                .max_capacity(MOST_RECENT)
                .eviction_policy(EvictionPolicy::lru())
                .build_with_hasher(ahash::RandomState::new()),
        }))
    }

    /// Tells the others, soon, that there is such a thing; unless they were just told, or told it themselves.
    pub(in crate::guard) fn tell(&self, kind: IdKind, id: KnownId) {
        let item = (kind, id);
        if self.recent.contains_key(&item) {
            return;
        }
        self.recent.insert(item, ());
        let mut waiting = self.waiting.lock();
        waiting.push_back(item);
        self.keep_bound(&mut waiting);
        drop(waiting);
        self.news.notify_one();
    }

    /// How this instance stands with its peers.
    pub(in crate::guard) fn report(&self) -> PeersReport {
        PeersReport {
            connected: self.metrics.peers_connected.get() > 0,
            waiting: self.waiting.lock().len(),
        }
    }

    fn keep_bound(&self, waiting: &mut VecDeque<Item>) {
        while waiting.len() > MOST_WAITING {
            waiting.pop_front();
            self.metrics.peers_dropped.inc();
        }
    }

    /// Tells and hears until `stop`, whenever there is a connection.
    pub(in crate::guard) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = Place::default();
        let (mut pause, mut said) = (FIRST_PAUSE, false);
        for attempt in 0.. {
            let served = self.serve(attempt, &mut seen, &stop).await;
            let was_connected = self.metrics.peers_connected.get() > 0;
            self.metrics.peers_connected.set(0);
            let Err(why) = served else { return };
            if was_connected {
                (pause, said) = (FIRST_PAUSE, false);
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(
                    "the guard cannot tell its peers what it learns, nor hear them: {why}; it is tried again"
                );
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    }

    /// Uses one connection until it is lost, which is an error, or until `stop`.
    async fn serve(&self, attempt: usize, seen: &mut Place, stop: &CancellationToken) -> Result<(), String> {
        let client = self.servers.client(attempt).map_err(|error| error.to_string())?;
        let mut connection = AbortOnDropHandle::new(client.connect());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            connected = in_time(client.wait_for_connect()) => connected?,
        }
        let mut polls = interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // Who does not hear it now never does from here.
                    let _ = timeout(LAST_WORDS, self.flush(&client)).await;
                    return Ok(());
                }
                ended = &mut connection => return Err(match ended {
                    Ok(Err(error)) => error.to_string(),
                    _ => "closed".to_owned(),
                }),
                _ = polls.tick() => {
                    let mut read = 0;
                    while self.read(&client, seen, &mut read).await? && !stop.is_cancelled() {
                        self.flush(&client).await?;
                    }
                    self.flush(&client).await?;
                    if self.metrics.peers_connected.get() == 0 {
                        tracing::info!(read, "the guard hears its peers");
                        self.metrics.peers_connected.set(1);
                    }
                }
                () = self.gathered() => self.flush(&client).await?,
            }
        }
    }

    /// There is something to tell. Whoever does not wait for the end of this tells it at the next poll.
    async fn gathered(&self) {
        self.news.notified().await;
        sleep(GATHER).await;
    }

    /// Tells everything that waits. What could not be told waits on.
    async fn flush(&self, client: &Client) -> Result<(), String> {
        loop {
            let batch: Vec<Item> = {
                let mut waiting = self.waiting.lock();
                let count = waiting.len().min(WRITTEN);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.write(client, &batch).await {
                let mut waiting = self.waiting.lock();
                batch.into_iter().rev().for_each(|item| waiting.push_front(item));
                self.keep_bound(&mut waiting);
                return Err(error);
            }
        }
    }

    async fn write(&self, client: &Client, batch: &[Item]) -> Result<(), String> {
        let pipeline = client.pipeline();
        let mut told = 0;
        // What waited for long may have been deleted meanwhile.
        for item in batch.iter().filter(|(kind, id)| self.known.has(*kind, id)) {
            let fields = (FIELD, Value::Bytes(encode(*item).to_vec().into()));
            let bound = ("MAXLEN", "~", self.kept);
            pipeline
                .xadd::<(), _, _, _, _>(&self.stream, false, bound, "*", fields)
                .await
                .map_err(|error| error.to_string())?;
            told += 1;
        }
        pipeline
            .pexpire::<(), _>(&self.stream, IDLE.as_millis() as i64, None)
            .await
            .map_err(|error| error.to_string())?;
        in_time(pipeline.all::<Value>()).await?;
        self.metrics.peers_told.inc_by(told);
        Ok(())
    }

    /// Takes in the entries behind `seen`, a page at most; whether there may be more. `read`: how many there were.
    async fn read(&self, client: &Client, seen: &mut Place, read: &mut u64) -> Result<bool, String> {
        let Some(next) = seen.next() else { return Ok(false) };
        let pipeline = client.pipeline();
        let ask = async {
            let next = next.to_string();
            pipeline
                .xrange::<(), _, _, _>(&self.stream, next, "+", Some(READ))
                .await?;
            pipeline
                .xrevrange::<(), _, _, _>(&self.stream, "+", "-", Some(1))
                .await?;
            pipeline.all::<Value>().await
        };
        let (page, last) = match in_time(ask).await? {
            Value::Array(replies) => {
                let mut replies = replies
                    .into_iter()
                    .map(|reply| entries(reply).ok_or("a reply of another form"));
                let mut reply = || replies.next().unwrap_or(Err("no reply"));
                (reply()?, reply()?)
            }
            _ => return Err("a reply of another form".to_owned()),
        };
        let last = last.first().map(|(place, _)| *place);
        if *seen > last.unwrap_or_default() {
            // Another stream than the one that was read.
            *seen = Place::default();
            return Ok(last.is_some());
        }
        self.hear(&page);
        *seen = page.last().map_or(*seen, |(place, _)| *place);
        let before = *read / ENTRIES_PER_LOG;
        *read += page.len() as u64;
        if *read / ENTRIES_PER_LOG > before {
            tracing::info!(read, "reading what peers have learnt");
        }
        Ok(page.len() as u64 >= READ)
    }

    fn hear(&self, page: &[(Place, Option<Item>)]) {
        let mut old = vec![Vec::new(); IdKind::ALL.len()];
        for (place, item) in page {
            let Some((kind, id)) = *item else { continue };
            // The database has told by now, better than this can, which keys there are: those that were deleted long
            // ago still stand in the stream.
            let is_old = self.is_old(*place);
            let is_outdated = is_old && self.has_database && is_exact(kind);
            if is_outdated || self.recent.contains_key(&(kind, id)) {
                continue;
            }
            self.recent.insert((kind, id), ());
            self.metrics.peers_heard.inc();
            if is_old {
                old[kind as usize].push(id);
            } else {
                self.known.learn(kind, id);
            }
        }
        for (kind, ids) in IdKind::ALL.iter().zip(&old).filter(|(_, ids)| !ids.is_empty()) {
            self.known.add(*kind, ids);
        }
    }

    /// Whether an entry is of a time that the database shows, if there is one.
    fn is_old(&self, place: Place) -> bool {
        let now = self
            .clock
            .now()
            .wall
            .duration_since(std::time::SystemTime::UNIX_EPOCH);
        let age = now
            .unwrap_or_default()
            .saturating_sub(Duration::from_millis(place.millis));
        age > OVERLAP
    }
}

/// What becomes of `command`, or that it takes too long.
async fn in_time<T>(command: impl Future<Output = Result<T, fred::error::Error>>) -> Result<T, String> {
    match timeout(DEADLINE, command).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests;

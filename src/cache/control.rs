//! What the rest of the program may see of the cache while it works, and may end in it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::coherence::Told;
use super::entry::{Entry, Staleness};
use super::fetching::Shared;
use super::invalidation::Validity;
use super::key::Key;
use crate::types::ids::{Principal, Tag, TagKind, hex};

/// How often it is looked whether the shared tier can be used, at the start.
const LOOK: Duration = Duration::from_millis(5);
/// Entries that one look shows at most.
const SHOWN: usize = 32;

/// A handle on a cache in use.
#[derive(Debug, Clone)]
pub struct CacheControl {
    shared: Arc<Shared>,
}

/// Which answers are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those whose key begins with these eight hexadecimal digits, as `Cache-Status` shows them.
    Key([u8; 4]),
    /// Those that depend on the tag.
    Tag(Tag),
    /// Those of one route, by its template.
    Route(String),
    /// Those to one principal.
    Principal(Principal),
    /// All.
    All,
}

/// How many answers a purge found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Stored answers that were removed or marked stale. Those that were being fetched are ended too, and not
    /// counted.
    pub entries: u64,
}

/// A purge on its way to the other instances.
#[derive(Debug)]
#[must_use = "the others are told either way, but only this says whether they were"]
pub struct Telling(Option<(Told, Duration)>);

impl Telling {
    /// Whether they were told; waits for that a moment. `None` without other instances.
    pub async fn told(self) -> Option<bool> {
        let (told, patience) = self.0?;
        Some(told.within(patience).await)
    }
}

/// The tier that instances share; counters are since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedStats {
    /// Whether it is used at this moment.
    pub open: bool,
    /// Whether what other instances end is heard at this moment.
    pub heard: bool,
    /// Look-ups that found an answer.
    pub hits: u64,
    /// Look-ups that found none, or one that was no longer true.
    pub misses: u64,
    /// Look-ups and writes that failed.
    pub errors: u64,
    /// Look-ups and writes that took longer than the deadline.
    pub deadline_exceeded: u64,
    /// Look-ups that were not made: too many under way, or a write of this instance's not confirmed.
    pub skipped: u64,
    /// Bytes of values that were read.
    pub bytes_read: u64,
    /// Bytes of values that were written.
    pub bytes_written: u64,
    /// Answers that were put there.
    pub writes: u64,
    /// Answers for which the queue had no room.
    pub writes_dropped: u64,
    /// Values and messages that could not be read.
    pub unreadable: u64,
    /// Invalidations that were told to the others.
    pub invalidations_sent: u64,
    /// Invalidations that were heard from them.
    pub invalidations_heard: u64,
    /// Times that messages were lost.
    pub gaps: u64,
    /// Fetches that this instance did for all.
    pub flights_led: u64,
    /// Fetches that another instance did for this one.
    pub flights_followed: u64,
}

/// The cache at one moment; counters are since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Requests that memory answered.
    pub hits: u64,
    /// Requests that it did not.
    pub misses: u64,
    /// The tier that instances share; `null` without one.
    pub l2: Option<SharedStats>,
    /// Answers held.
    pub entries: u64,
    /// Bytes held, overhead included.
    pub bytes: u64,
    /// Bytes that may be held.
    pub max_bytes: u64,
    /// Removed to make room.
    pub evicted_for_size: u64,
    /// Removed because they were too old for any use.
    pub evicted_by_age: u64,
    /// Requests that waited for another request's fetch.
    pub coalesced: u64,
    /// Fetches under way that others may join.
    pub flights: usize,
    /// Writes that ended stored answers.
    pub invalidations: u64,
    /// Writes whose outcome was never seen.
    pub unsettled_writes: u64,
    /// Stale answers given while a new one was fetched.
    pub stale_while_revalidate: u64,
    /// Stale answers given because no new one could be had.
    pub stale_if_error: u64,
    /// Background fetches that replaced an answer.
    pub refreshed: u64,
    /// Background fetches that failed.
    pub refreshes_failed: u64,
    /// Background fetches that were not begun, because too many were under way.
    pub refreshes_skipped: u64,
    /// Purges.
    pub purges: u64,
}

/// One stored answer at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryStatus {
    /// Its key, 32 hexadecimal digits.
    pub key: String,
    /// Template of its route.
    pub route: &'static str,
    /// `fresh`, `stale-while-revalidate`, `stale-if-error` (usable then), `expired` or `ended` (by a write or
    /// purge; it waits for its removal).
    pub state: &'static str,
    /// Status code.
    pub status: u16,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Bytes that it is counted for.
    pub bytes: u32,
    /// Seconds.
    pub age: u64,
    /// Seconds of freshness that are left, negative when stale.
    pub ttl: i64,
    /// Seconds after its freshness in which it may be given while a new one is fetched.
    pub stale_while_revalidate: u64,
    /// Seconds after its freshness in which it may be given when no new one can be had.
    pub stale_if_error: u64,
    /// Whether a try to replace it failed in the last 30 seconds.
    pub refresh_failed: bool,
}

impl CacheControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Brings the gauges of entries and bytes up to date; call it before metrics are read.
    pub fn refresh_gauges(&self) {
        let (entries, bytes) = self.shared.l1.size();
        self.shared.metrics.entries.set(entries as i64);
        self.shared.metrics.bytes.set(bytes as i64);
        if let Some(l2) = &self.shared.l2 {
            l2.metrics.open.set(l2.is_open().into());
            l2.metrics.hears.set(self.shared.coherence.hears().into());
        }
    }

    /// Waits until the tier that instances share can be used, but not longer than `limit`: whoever starts beside others
    /// has much of what it will be asked for there.
    pub async fn is_warm(&self, limit: Duration) {
        let Some(l2) = &self.shared.l2 else {
            return;
        };
        let open = async {
            while !l2.is_open() {
                sleep(LOOK).await;
            }
        };
        // Without it this one starts cold.
        let _ = timeout(limit, open).await;
    }

    /// The tier that instances share at this moment.
    pub fn shared(&self) -> Option<SharedStats> {
        let l2 = self.shared.l2.as_ref()?;
        let metrics = &l2.metrics;
        Some(SharedStats {
            open: l2.is_open(),
            heard: self.shared.coherence.hears(),
            hits: metrics.hits.get(),
            misses: metrics.misses.get(),
            errors: metrics.errors.get(),
            deadline_exceeded: metrics.deadline_exceeded.get(),
            skipped: metrics.skipped.get(),
            bytes_read: metrics.bytes_read.get(),
            bytes_written: metrics.bytes_written.get(),
            writes: metrics.writes.get(),
            writes_dropped: metrics.writes_dropped.get(),
            unreadable: metrics.unread(),
            invalidations_sent: metrics.sent.get(),
            invalidations_heard: metrics.heard.get(),
            gaps: metrics.gaps.get(),
            flights_led: metrics.led.get(),
            flights_followed: metrics.followed.get(),
        })
    }

    /// The cache at this moment.
    pub fn stats(&self) -> CacheStats {
        let (entries, bytes) = self.shared.l1.size();
        let metrics = &self.shared.metrics;
        CacheStats {
            hits: metrics.l1_hits.get(),
            misses: metrics.l1_misses.get(),
            l2: self.shared(),
            entries,
            bytes,
            max_bytes: self.shared.l1.max_bytes(),
            evicted_for_size: metrics.evicted_for_size.get(),
            evicted_by_age: metrics.evicted_by_age.get(),
            coalesced: metrics.coalesced.get(),
            flights: self.shared.flights.len(),
            invalidations: metrics.invalidations.get(),
            unsettled_writes: metrics.unsettled.get(),
            stale_while_revalidate: metrics.stale_while_revalidate.get(),
            stale_if_error: metrics.stale_if_error.get(),
            refreshed: metrics.refreshed.get(),
            refreshes_failed: metrics.refreshes_failed.get(),
            refreshes_skipped: metrics.refreshes_skipped.get(),
            purges: metrics.purges.get(),
        }
    }

    /// Removes the answers that `selection` means, or, when `soft`, marks them stale: they may then be given
    /// as far as their stale windows allow. Answers that are being fetched at this moment are never stored
    /// (`soft`: stored as stale). Other instances are told. Looks at every entry, so call it where blocking does no
    /// harm.
    pub fn purge(&self, selection: &Selection, soft: bool) -> (Purged, Telling) {
        let shared = &self.shared;
        shared.metrics.purges.inc();
        let tag = match selection {
            Selection::Key(prefix) => Some(Tag::of(TagKind::Key, hex(prefix).as_bytes())),
            Selection::Tag(tag) => Some(*tag),
            Selection::Route(template) => Some(Tag::of(TagKind::Route, template.as_bytes())),
            Selection::Principal(principal) => {
                Some(Tag::of(TagKind::Principal, principal.to_hex().as_bytes()))
            }
            Selection::All => None,
        };
        let told = match (tag, soft) {
            (Some(tag), false) => shared.coherence.bump(&[tag]),
            (Some(tag), true) => shared.coherence.mark_stale(tag),
            (None, false) => shared.coherence.bump_all(),
            (None, true) => shared.coherence.mark_all_stale(),
        };
        let touched = if soft { Validity::Stale } else { Validity::Ended };
        let mut entries = 0;
        for (key, entry) in shared.l1.iter() {
            let meant = tag.is_none_or(|tag| entry.versions.cover(tag));
            if meant && shared.tags.validity(&entry.versions) == touched {
                entries += 1;
                if !soft {
                    shared.l1.remove(&key);
                }
            }
        }
        let patience = shared.l2.as_ref().map(|l2| l2.timeout());
        (
            Purged { entries },
            Telling(patience.map(|patience| (told, patience))),
        )
    }

    /// The stored answers whose key begins with the hexadecimal digits `prefix`, at most 32 of them. Looks at
    /// every entry unless the key is whole (32 digits).
    pub fn entries(&self, prefix: &str) -> Vec<EntryStatus> {
        let prefix = prefix.to_ascii_lowercase();
        if let Some(key) = crate::types::ids::from_hex(&prefix).map(Key) {
            let found = self.shared.l1.get(&key);
            return found.iter().map(|entry| self.status(&key, entry)).collect();
        }
        let entries = self.shared.l1.iter();
        entries
            .filter(|(key, _)| hex(&key.0).starts_with(&prefix))
            .map(|(key, entry)| self.status(&key, &entry))
            .take(SHOWN)
            .collect()
    }

    fn status(&self, key: &Key, entry: &Entry) -> EntryStatus {
        let now = self.shared.clock.now().monotonic;
        let validity = self.shared.validity(entry, now);
        let state = match (validity, entry.staleness(validity == Validity::Stale, now)) {
            (Validity::Ended, _) => "ended",
            (_, Staleness::Fresh) => "fresh",
            (_, Staleness::WhileRevalidating) => "stale-while-revalidate",
            (_, Staleness::OnError) => "stale-if-error",
            (_, Staleness::Expired) => "expired",
        };
        EntryStatus {
            key: hex(&key.0),
            route: entry.template,
            state,
            status: entry.status.as_u16(),
            body_bytes: entry.packed.body_len(),
            bytes: entry.weight(),
            age: entry.age(now).as_secs(),
            ttl: entry.signed_ttl(now),
            stale_while_revalidate: entry.life.stale_while_revalidate.as_secs(),
            stale_if_error: entry.life.stale_if_error.as_secs(),
            refresh_failed: entry.refresh_failed(now),
        }
    }
}

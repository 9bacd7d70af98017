//! Tags with versions: how a write ends every stored answer that it may have changed.
//!
//! A fill notes the versions that its tags had when the fetch began and keeps them in the entry; a write bumps
//! the versions when it goes out, and again after the upstream has answered and before the client sees the answer; a reader takes an entry
//! only while its versions are current. A fill that began before the write thus can never be served after it.
//! The table is bounded: tags share slots by hash, and a shared slot only costs a miss.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::types::ids::Tag;

const SLOTS: usize = 1 << 16;

/// The version of every tag, and until when it is unsettled.
#[derive(Debug)]
pub struct TagTable {
    slots: Box<[Slot]>,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct Slot {
    version: AtomicU64,
    /// Milliseconds since `epoch`.
    unsettled_until: AtomicU64,
}

/// The versions that some tags had at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagVersions(SmallVec<[(u32, u64); 4]>);

impl TagTable {
    /// A table in which nothing has been written yet; `now` is the origin of its times.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            epoch: now,
        }
    }

    fn index(tag: Tag) -> u32 {
        // The tags are FNV hashes, whose low bits are the well mixed ones.
        (tag.0 ^ (tag.0 >> 32)) as u32 & (SLOTS as u32 - 1)
    }

    fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// The versions of `tags` now. Take them before the fetch begins.
    pub fn versions(&self, tags: &[Tag]) -> TagVersions {
        TagVersions(
            tags.iter()
                .map(|tag| {
                    let index = Self::index(*tag);
                    (index, self.slot(index).version.load(Ordering::SeqCst))
                })
                .collect(),
        )
    }

    /// Whether none of the tags was bumped since `versions` were taken.
    pub fn is_current(&self, versions: &TagVersions) -> bool {
        versions
            .0
            .iter()
            .all(|(index, version)| self.slot(*index).version.load(Ordering::SeqCst) == *version)
    }

    /// Ends every answer that depends on one of `tags`.
    pub fn bump(&self, tags: &[Tag]) {
        for tag in tags {
            self.slot(Self::index(*tag))
                .version
                .fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The same, for a write that may still take effect: answers that depend on `tags` are not stored until
    /// `wait` has passed.
    pub fn bump_unsettled(&self, tags: &[Tag], now: Instant, wait: Duration) {
        let until = self.millis(now + wait);
        for tag in tags {
            self.slot(Self::index(*tag))
                .unsettled_until
                .fetch_max(until, Ordering::SeqCst);
        }
        self.bump(tags);
    }

    /// Whether an answer with these tags may be stored at `now`.
    pub fn is_settled(&self, versions: &TagVersions, now: Instant) -> bool {
        let now = self.millis(now);
        versions
            .0
            .iter()
            .all(|(index, _)| self.slot(*index).unsettled_until.load(Ordering::SeqCst) <= now)
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::TagKind;
    use crate::types::time::Clock;

    fn table() -> (TagTable, Instant) {
        let now = Clock::System.now().monotonic;
        (TagTable::new(now), now)
    }

    #[test]
    fn a_bump_ends_what_depends_on_the_tag_and_nothing_else() {
        let (table, _) = table();
        let user = Tag::of(TagKind::Conversations, b"a");
        let other = Tag::of(TagKind::Conversations, b"b");
        let (mine, theirs) = (table.versions(&[user]), table.versions(&[other]));
        table.bump(&[user]);
        assert!(!table.is_current(&mine));
        assert!(table.is_current(&theirs));
        assert!(
            table.is_current(&table.versions(&[user])),
            "what begins after the write is good"
        );
    }

    #[test]
    fn an_unsettled_tag_keeps_answers_out_until_its_time_is_over() {
        let (table, now) = table();
        let tags = [Tag::all(TagKind::Datasets)];
        table.bump_unsettled(&tags, now, Duration::from_secs(30));
        let after = table.versions(&tags);
        assert!(table.is_current(&after));
        assert!(!table.is_settled(&after, now + Duration::from_secs(29)));
        assert!(table.is_settled(&after, now + Duration::from_secs(30)));
    }
}

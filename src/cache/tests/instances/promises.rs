//! What must hold, from what clients, the origin and the store have seen.

use std::time::Duration;

use tokio::time::Instant;

use super::steps::{FILLS, INSTANCES, RESOURCES};

/// The time in which others stop, and for which a deaf instance serves what it has looked at.
const SOON: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);

/// A write, or a change by another road with the purge that followed it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) instance: usize,
    pub(super) tags: u8,
    /// Versions that it made.
    pub(super) effects: Vec<(usize, u64)>,
    /// Whether its client has an answer, or nobody waits for one any more.
    pub(super) over: bool,
    /// Whether it was cut off, and until when it may still take effect.
    pub(super) cut_until: Option<Instant>,
    /// When the store had confirmed it, and how much its instance had posted by then.
    pub(super) confirmed: Option<(Instant, u64)>,
    /// Whether its instance has ended since.
    pub(super) orphaned: bool,
    /// Whether the store has lost what it knew since.
    pub(super) store_lost: bool,
    /// Instances that have lost its message, and will get no other from its sender, which has ended.
    pub(super) unheard_by: [bool; INSTANCES],
}

/// What is known of an instance.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The last message of each instance that was delivered, and the last that was lost.
    pub(super) delivered: [u64; INSTANCES],
    pub(super) lost: [u64; INSTANCES],
    /// When the last of its own beats that came back was sent.
    pub(super) heard_at: Option<Instant>,
    /// When it last found each resource in the store.
    pub(super) looked_at: [Option<Instant>; RESOURCES],
}

/// A read as it began.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) instance: usize,
    pub(super) resource: usize,
    /// The version that the answer has to have, and why.
    pub(super) required: (u64, &'static str),
    /// The same for an answer from the store.
    pub(super) required_of_store: u64,
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) version: u64,
    /// When the fetch that brought it began.
    pub(super) fetched_at: Instant,
    pub(super) status: String,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) changes: Vec<Change>,
    pub(super) known: [Known; INSTANCES],
}

impl Change {
    fn made(&self, resource: usize) -> u64 {
        let versions = self
            .effects
            .iter()
            .filter(|(r, _)| *r == resource)
            .map(|(_, version)| *version);
        versions.max().unwrap_or(0)
    }

    /// Whether the instances must know of it, whatever it does from now on.
    fn binds(&self) -> bool {
        self.over && (self.cut_until.is_none() || !self.store_lost)
    }
}

impl Book {
    /// What a read that begins now has to get. `hears`: whether the instance says that it hears all others.
    pub(super) fn begin(&self, instance: usize, resource: usize, hears: bool, now: Instant) -> Reading {
        let (mut required, mut required_of_store) = ((0, "nothing"), 0);
        for change in self.changes.iter().filter(|change| change.binds()) {
            let made = change.made(resource);
            if change.instance == instance && !change.orphaned && made > required.0 {
                required = (made, "its own write");
            }
            let Some((confirmed_at, posted)) = change.confirmed else {
                continue;
            };
            required_of_store = required_of_store.max(made);
            // A lost message is noticed with the next one.
            let unnoticed = change.unheard_by[instance] || self.lost(instance, change.instance, posted);
            if hears && !unnoticed && now > confirmed_at + SOON && made > required.0 {
                required = (made, "a write that others confirmed more than a second ago");
            }
        }
        Reading {
            instance,
            resource,
            required,
            required_of_store,
        }
    }

    /// Holds an answer against the promises.
    pub(super) fn check(
        &self,
        reading: &Reading,
        given: &Given,
        hears: bool,
        now: Instant,
    ) -> Result<(), String> {
        let Given {
            version,
            fetched_at,
            status,
        } = given;
        let (required, why) = reading.required;
        if *version < required {
            return Err(format!(
                "version {version} in place of {required} ({why}): {status}"
            ));
        }
        let hit = status.contains("; hit") || status.contains("detail=stale");
        let from_store = status.ends_with("detail=l2");
        if from_store && *version < reading.required_of_store {
            let required = reading.required_of_store;
            return Err(format!(
                "the store had confirmed version {required} before: {version}, {status}"
            ));
        }
        if hit && !from_store && !hears {
            let known = &self.known[reading.instance];
            let looked = known.looked_at[reading.resource];
            let last = [Some(*fetched_at), known.heard_at, looked]
                .into_iter()
                .flatten()
                .max();
            let old = last.map(|last| now.saturating_duration_since(last));
            if old.is_none_or(|old| old > WINDOW) {
                return Err(format!(
                    "deaf, and served what it last looked at {old:?} ago: {status}"
                ));
            }
        }
        Ok(())
    }

    /// Whether an instance may lack what another had posted by then, and cannot know it yet.
    fn lost(&self, instance: usize, sender: usize, posted: u64) -> bool {
        let known = &self.known[instance];
        known.lost[sender] > known.delivered[sender] && known.delivered[sender] < posted
    }

    /// An instance ends, and what it alone knew is lost.
    pub(super) fn restarted(&mut self, instance: usize) {
        for number in 0..self.changes.len() {
            let change = &self.changes[number];
            if change.instance != instance || change.orphaned {
                continue;
            }
            let posted = change.confirmed.map_or(u64::MAX, |(_, posted)| posted);
            let unheard_by = std::array::from_fn(|other| self.lost(other, instance, posted));
            self.changes[number].orphaned = true;
            self.changes[number].unheard_by = unheard_by;
        }
        self.known[instance] = Known::default();
    }
}

/// The resources that depend on these tags.
pub(super) fn touched(tags: u8) -> impl Iterator<Item = usize> {
    (0..RESOURCES).filter(move |resource| FILLS[*resource] & tags != 0)
}

//! What must hold, from what clients, the origin and the store have seen.

use std::time::Duration;

use tokio::time::Instant;

use super::instance::tags;
use super::steps::{FILLS, INSTANCES, RESOURCES};
use super::store::Announced;
use crate::cache::invalidation::TagTable;

/// The time in which others stop, and for which a deaf instance serves what it has looked at.
const SOON: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);
/// How long after a new subscription one's own beats prove nothing.
const TUNING: Duration = Duration::from_millis(500);

/// A write, or a change by another road with the purge that followed it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) instance: usize,
    pub(super) tags: u8,
    /// Versions that it made.
    pub(super) effects: Vec<(usize, u64)>,
    pub(super) began_at: Instant,
    /// When the last of them were made.
    pub(super) effect_at: Option<Instant>,
    /// Whether its client has an answer, or nobody waits for one any more.
    pub(super) over: bool,
    /// Whether it was cut off, and until when it may still take effect.
    pub(super) cut_until: Option<Instant>,
    /// When the store had carried out its announcement, and how much its instance had posted by then.
    pub(super) confirmed: Option<(Instant, u64)>,
    /// Whether its instance has ended since.
    pub(super) orphaned: bool,
    /// Whether the store has lost since what it knew of it, and was not told again.
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
    /// With a subscription: beats that were sent after this prove something, and when the last that did was sent.
    pub(super) tuned: Option<Instant>,
    pub(super) sure_at: Option<Instant>,
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
    /// When a fetch for it was last under way.
    pub(super) cared_at: Instant,
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
    pub(super) fn new(instance: usize, tags: u8, now: Instant) -> Self {
        Self {
            instance,
            tags,
            effects: Vec::new(),
            began_at: now,
            effect_at: None,
            over: false,
            cut_until: None,
            confirmed: None,
            orphaned: false,
            store_lost: false,
            unheard_by: [false; INSTANCES],
        }
    }

    fn made(&self, resource: usize) -> u64 {
        let versions = self
            .effects
            .iter()
            .filter(|(r, _)| *r == resource)
            .map(|(_, version)| *version);
        versions.max().unwrap_or(0)
    }

    /// Whether the other instances can know of it, whatever it does from now on.
    fn binds_others(&self) -> bool {
        self.cut_until.is_none() || !self.store_lost
    }

    /// The store carried this out.
    pub(super) fn announced(&mut self, what: &Announced, now: Instant, posted: u64) {
        let slots = TagTable::slots(&tags(self.tags));
        let covers = what
            .slots
            .as_ref()
            .is_none_or(|there| slots.iter().all(|slot| there.contains(slot)));
        // What was announced before it took effect says nothing, unless it says that it may.
        let tells = match self.cut_until {
            Some(_) => what.unsettled,
            None => !self.effects.is_empty(),
        };
        if what.from == self.instance && !self.orphaned && self.confirmed.is_none() && covers && tells {
            self.confirmed = Some((now, posted));
            self.store_lost = false;
        }
    }
}

impl Known {
    pub(super) fn connected(&mut self, now: Instant) {
        self.tuned = Some(now + TUNING);
    }

    pub(super) fn disconnected(&mut self) {
        (self.tuned, self.sure_at) = (None, None);
    }

    /// A beat of its own came back.
    pub(super) fn heard(&mut self, sent: Instant, now: Instant) {
        self.heard_at = self.heard_at.max(Some(sent));
        if self.tuned.is_some_and(|tuned| tuned <= sent) && now < sent + SOON {
            self.sure_at = self.sure_at.max(Some(sent));
        }
    }

    /// Whether everything that is a second old has come.
    fn hears(&self, now: Instant) -> bool {
        self.sure_at.is_some_and(|sent| now < sent + SOON)
    }
}

impl Book {
    /// What a read that begins now has to get.
    pub(super) fn begin(&self, instance: usize, resource: usize, now: Instant) -> Reading {
        let hears = self.known[instance].hears(now);
        let (mut required, mut required_of_store) = ((0, "nothing"), 0);
        for change in self.changes.iter().filter(|change| change.over) {
            let made = change.made(resource);
            if change.instance == instance && !change.orphaned && made > required.0 {
                required = (made, "its own write");
            }
            let Some((confirmed_at, posted)) = change.confirmed.filter(|_| change.binds_others()) else {
                continue;
            };
            required_of_store = required_of_store.max(made);
            // A lost message is noticed with the next one.
            let unnoticed = change.unheard_by[instance] || self.lost(instance, change.instance, posted);
            let (due, why) = if hears {
                (confirmed_at + SOON, "others confirmed it more than a second ago")
            } else {
                let last = change.effect_at.map_or(confirmed_at, |at| at.max(confirmed_at));
                (
                    last + WINDOW,
                    "deaf, and others confirmed it longer ago than the window",
                )
            };
            if !unnoticed && now > due && made > required.0 {
                required = (made, why);
            }
        }
        Reading {
            instance,
            resource,
            required,
            required_of_store,
            cared_at: now,
        }
    }

    /// Holds an answer against the promises.
    pub(super) fn check(&self, reading: &Reading, given: &Given, now: Instant) -> Result<(), String> {
        let hears = self.known[reading.instance].hears(now);
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

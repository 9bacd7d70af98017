//! The slots of the replicas that are in use, and whether there is one left for a lane.

use super::LANES;
use crate::config::upstreams::LanesConfig;
use crate::routing::balance::Balance;
use crate::routing::failover::Standing;
use crate::routing::replica::Replica;
use crate::types::chance::Chance;
use crate::types::request::Lane;

/// The part of the share of pages that all other lanes together leave them, however many slots are free: half. All of it
/// would be more than the others leave by their limits, and a stream more or less at each replica.
const KEPT: f64 = 0.5;

/// Slots in use, and what chooses among those that are free.
pub(super) struct Slots {
    /// Those in use, by replica and lane.
    pub(super) in_flight: Vec<[usize; LANES]>,
    /// The most of a replica's slots that a lane has, of one.
    limits: [f64; LANES],
    /// What the other lanes together leave to pages, of one.
    kept: f64,
    pub(super) policy: Box<dyn Balance>,
    /// For the rules of place.
    pub(super) chance: Chance,
    /// Which cluster is asked.
    pub(super) standing: Standing,
}

impl Slots {
    /// None in use.
    pub(super) fn new(lanes: &LanesConfig, policy: Box<dyn Balance>, chance: Chance) -> Self {
        Self {
            in_flight: Vec::new(),
            limits: Lane::ALL.map(|lane| lanes.of(lane).limit.0),
            kept: lanes.of(Lane::Short).share.0 * KEPT,
            policy,
            chance,
            standing: Standing::FIRST,
        }
    }

    /// Those in use of one lane.
    pub(super) fn of(&self, lane: Lane) -> usize {
        self.in_flight.iter().map(|lanes| lanes[lane as usize]).sum()
    }

    /// Those in use of `replica`.
    pub(super) fn at(&self, replica: &Replica) -> usize {
        self.in_flight[replica.place()].iter().sum()
    }

    /// Takes or gives back some of `replica`.
    pub(super) fn add(&mut self, replica: &Replica, lane: Lane, more: isize) {
        let lane = &mut self.in_flight[replica.place()][lane as usize];
        *lane = lane.saturating_add_signed(more);
        replica.metrics.in_flight.set(self.at(replica) as i64);
    }

    /// Whether `replica` has room for one more of `lane`. Lanes other than that of pages hold their slots for long, so
    /// all of these together leave some, too, unless one alone may have them.
    pub(super) fn has_room(&self, replica: &Replica, lane: Lane) -> bool {
        let in_flight = &self.in_flight[replica.place()];
        let (slots, all, most) = (replica.slots(), self.at(replica), self.most(replica, lane));
        let kept = (slots as f64 * self.kept).ceil() as usize;
        let together = most.max(slots.saturating_sub(kept));
        all < slots
            && in_flight[lane as usize] < most
            && (lane == Lane::Short || all - in_flight[Lane::Short as usize] < together)
    }

    /// The most of the slots of `replica` that `lane` has.
    pub(super) fn most(&self, replica: &Replica, lane: Lane) -> usize {
        let slots = replica.slots();
        ((slots as f64 * self.limits[lane as usize]) as usize).clamp(1, slots)
    }
}

/// Requests in flight at `place`, of which there may be more than when they were counted.
pub(in crate::routing) fn at(in_flight: &[usize], place: usize) -> usize {
    in_flight.get(place).copied().unwrap_or_default()
}

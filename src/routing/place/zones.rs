//! The own zone first, as long as it can take it.
//!
//! The score of the own zone is the mean of the scores of its replicas, each weighing as much as it has slots; one that may
//! not be asked counts as 0, so that a zone that has lost half of its slots has half of the score. From [`ENOUGH`] on every request
//! stays. Below, the share `1 - score / ENOUGH` leaves it, so that what is left of the zone gets no more than it would in
//! a zone that is just well enough. Who leaves goes to one of the other zones with the chance of its weight, the sum of
//! score times slots over its free replicas. A zone that is full, or gone, holds nobody back.

use super::{Left, View};
use crate::types::chance::Chance;

/// The score from which on a zone keeps all requests. 1 / 1.4, rounded: Envoy's overprovisioning factor, by which a
/// locality keeps its traffic while 71 % of its hosts are healthy. Here it also means that a zone that is otherwise
/// well begins to spill over when four fifths of its slots are in use, and when one of three replicas is lost.
pub(super) const ENOUGH: f64 = 0.7;

/// Leaves in `left` those of one zone, or of all where zones play no part.
pub(super) fn narrow(left: &mut Left<'_>, chance: &mut Chance) {
    // Who stands by is beyond zones: it is asked when there is nobody else.
    let at_home = |view: &View<'_>| view.marks.at_home && !view.standby;
    let home = left.iter().filter(|view| at_home(view));
    if home.clone().all(|view| view.score.is_none()) {
        return;
    }
    let slots = home.clone().map(|view| view.slots).sum::<usize>();
    let score = home.clone().map(weight).sum::<f64>() / slots.max(1) as f64;
    let is_full = !home.clone().any(|view| view.free);
    let leaves = is_full || chance.draw() >= score / ENOUGH;
    let zone = leaves.then(|| elsewhere(left, at_home, chance)).flatten();
    match zone {
        Some(zone) => left.retain(|view| !at_home(view) && view.zone == zone),
        None => left.retain(|view| at_home(view)),
    }
}

/// What a replica counts for.
fn weight(view: &View<'_>) -> f64 {
    view.score.unwrap_or_default() * view.slots as f64
}

/// A zone that has a free replica that is not `at_home`, by chance.
fn elsewhere<'a>(
    left: &Left<'a>,
    at_home: impl Fn(&View<'a>) -> bool,
    chance: &mut Chance,
) -> Option<Option<&'a str>> {
    let free = || left.iter().filter(|view| view.free && !at_home(view));
    let mut at = chance.draw() * free().map(weight).sum::<f64>();
    let drawn = free().find(|view| {
        at -= weight(view);
        at < 0.0
    });
    // What rounding leaves falls to the last.
    drawn.or_else(|| free().last()).map(|view| view.zone)
}

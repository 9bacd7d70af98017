//! Which replicas may serve a request, whether they have a slot or not; and what is said when none may.
//!
//! `pool` looks for a free slot among them, `place` says which of those it should be by zone and label, `balance` chooses
//! one of those.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::balance::Candidate;
use super::place::{Rules, View};
use super::pool::Avoid;
use super::replica::Replica;
use crate::types::outcome::RouteClass;
use crate::types::{Failure, FailureKind};

/// The replicas that may serve, busy or not: the healthy ones; else healthy standby replicas; else all,
/// because a request that fails is no worse than one that is refused. Replicas that failed this fetch
/// are left out as long as any other may serve. One that leaves never serves, nor does one whose breaker lets nobody in,
/// nor one that the hard rules of `class` leave out. In ascending order of place.
pub(super) fn fit<'a>(
    members: &'a [Option<Arc<Replica>>],
    class: RouteClass,
    avoid: &Avoid,
    now: Instant,
) -> SmallVec<[&'a Arc<Replica>; 16]> {
    let tier = |replica: &Replica| {
        let (healthy, standby) = (replica.is_healthy(), replica.standby);
        let fresh = !avoid.contains(&replica.place());
        match (fresh && healthy, standby) {
            (true, false) => Some(0),
            (true, true) => Some(1),
            (false, false) => Some(if fresh { 2 } else { 3 }),
            (false, true) => None,
        }
    };
    let mut first = u8::MAX;
    let mut fit = SmallVec::new();
    for replica in members.iter().flatten() {
        if !replica.is_open_to(class) || !replica.door.admits(now) {
            continue;
        }
        let Some(tier) = tier(replica) else { continue };
        if tier < first {
            first = tier;
            fit.clear();
        }
        if tier == first {
            fit.push(replica);
        }
    }
    fit
}

/// Whether those that may serve `class` are healthy replicas outside `avoid`; on standby only `with_standby`.
pub(super) fn may_be_elsewhere(
    members: &[Option<Arc<Replica>>],
    class: RouteClass,
    avoid: &Avoid,
    with_standby: bool,
    now: Instant,
) -> bool {
    // They are all alike in this.
    fit(members, class, avoid, now).first().is_some_and(|replica| {
        replica.is_healthy() && !avoid.contains(&replica.place()) && (with_standby || !replica.standby)
    })
}

/// What `place` looks at: the replicas of `members` that are in question for a fetch, of which some are `fit` and some of
/// these are `free`. `score` is asked for those that are fit and not free.
pub(super) fn views<'a>(
    members: &'a [Option<Arc<Replica>>],
    fit: &[&Arc<Replica>],
    free: &[Candidate],
    avoid: &Avoid,
    score: impl Fn(&Replica) -> f64,
) -> SmallVec<[View<'a>; 16]> {
    let view = |replica: &'a Arc<Replica>| {
        let place = replica.place();
        let fit = fit.binary_search_by_key(&place, |it| it.place()).is_ok();
        let free = free.iter().find(|it| it.replica == place);
        // One that failed this fetch does not count for it, neither way.
        (fit || !avoid.contains(&place)).then(|| View {
            replica: place,
            zone: replica.zone.as_deref(),
            marks: replica.marks,
            standby: replica.standby,
            slots: replica.slots(),
            score: fit.then(|| free.map_or_else(|| score(replica), |it| it.score)),
            free: free.is_some(),
        })
    };
    let members = members.iter().flatten();
    members
        .filter(|replica| !replica.is_leaving())
        .filter_map(view)
        .collect()
}

/// Whether the hard rules of `class` leave all replicas out: then what is said about that.
pub(super) fn unplaced(
    members: &[Option<Arc<Replica>>],
    class: RouteClass,
    rules: Option<&Rules>,
) -> Option<Failure> {
    let rules = rules?;
    let mut members = members.iter().flatten();
    if members.any(|replica| replica.is_open_to(class)) {
        return None;
    }
    rules.refusal(class)
}

/// What is said when no replica lets a request of `class` in: when the first one will.
pub(super) fn refusal(members: &[Option<Arc<Replica>>], class: RouteClass, now: Instant) -> Failure {
    let may_serve =
        |replica: &&Arc<Replica>| replica.is_open_to(class) && (!replica.standby || replica.is_healthy());
    let mut waits = members
        .iter()
        .flatten()
        .filter(may_serve)
        .map(|replica| replica.door.state(now).1);
    let Some(first) = waits.next() else {
        return Failure::new(FailureKind::NoReplica, "no replica of the upstream can be asked");
    };
    let first = waits.fold(first, Duration::min);
    // The next second: a client that comes too early is refused again.
    let seconds = first.as_secs() + u64::from(first.subsec_nanos() > 0);
    Failure {
        retry_after: Some(u16::try_from(seconds.max(1)).unwrap_or(u16::MAX)),
        ..Failure::new(
            FailureKind::NoReplica,
            "every replica of the upstream fails too often and is left alone for a while",
        )
    }
}

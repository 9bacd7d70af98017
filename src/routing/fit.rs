//! Which replicas may serve a request, whether they have a slot or not; and what is said when none may.
//!
//! `pool` looks for a free slot among them, `place` says which of those it should be by zone and label, `balance` chooses
//! one of those.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::balance::Candidate;
use super::failover::{Course, Standing, Wish, gone};
use super::place::{Rules, View};
use super::pool::Avoid;
use super::replica::Replica;
use crate::types::cluster::Cluster;
use crate::types::outcome::RouteClass;
use crate::types::{Failure, FailureKind};

/// What of a request matters for who may serve it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) class: RouteClass,
    pub(super) course: Course,
    pub(super) avoid: &'a Avoid,
}

/// The replicas that may serve, busy or not: the healthy ones of the cluster that is asked first; else healthy ones of the
/// other, if it may be asked; else all of the first, because a request that fails is no worse than one that is refused.
/// Replicas that failed this fetch are left out as long as any other may serve. One that leaves never serves, nor does
/// one whose breaker lets nobody in, nor one that the hard rules of the class leave out. In ascending order of place.
pub(super) fn fit<'a>(
    members: &'a [Option<Arc<Replica>>],
    asker: Asker<'_>,
    now: Instant,
) -> SmallVec<[&'a Arc<Replica>; 16]> {
    let Asker { class, course, avoid } = asker;
    let tier = |replica: &Replica| {
        let (healthy, is_first) = (replica.is_healthy(), replica.cluster == course.first);
        let fresh = !avoid.contains(&replica.place());
        match (fresh && healthy, is_first) {
            (true, true) => Some(0),
            (true, false) if !course.only => Some(1),
            (false, true) => Some(if fresh { 2 } else { 3 }),
            (_, false) => None,
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

/// Whether those that may serve are healthy replicas that have not failed this fetch; of the other cluster only
/// `with_other`.
pub(super) fn may_be_elsewhere(
    members: &[Option<Arc<Replica>>],
    asker: Asker<'_>,
    with_other: bool,
    now: Instant,
) -> bool {
    // They are all alike in this.
    fit(members, asker, now).first().is_some_and(|replica| {
        replica.is_healthy()
            && !asker.avoid.contains(&replica.place())
            && (with_other || replica.cluster == asker.course.first)
    })
}

/// Where a request goes that wants `wish` of an upstream that stands so. Nowhere yet (`None`) if its cluster has no replica
/// that is well and the other cluster will soon have the writes. Whoever has one cluster has nothing to agree about.
///
/// # Errors
/// What is said when it must not go where it could be served, or when the work that it is about is gone with its cluster.
pub(super) fn course(
    members: &[Option<Arc<Replica>>],
    standing: Standing,
    wish: Wish,
    now: Instant,
) -> Result<Option<Course>, Failure> {
    let has = |cluster| members.iter().flatten().any(|replica| replica.cluster == cluster);
    let course = match Cluster::ALL.into_iter().all(has) {
        true => standing.course(wish)?,
        false => Standing::FIRST.course(wish)?,
    };
    let is_well = |cluster| is_well(members, cluster, now);
    if !course.hold && course.gone.is_none() || is_well(course.first) {
        return Ok(Some(course));
    }
    match course.gone {
        Some(_) if wish.may_move => self::course(members, standing, Wish::plain(wish.safe), now),
        Some(work) => Err(gone(work, course.first)),
        None => Ok((!is_well(course.first.other())).then_some(course)),
    }
}

/// Whether a request that wants `wish` would go nowhere yet if its cluster were found to have no replica that is well.
pub(super) fn may_be_held(
    members: &[Option<Arc<Replica>>],
    standing: Standing,
    wish: Wish,
    now: Instant,
) -> bool {
    let course = standing.course(wish);
    course.is_ok_and(|course| course.hold && is_well(members, course.first.other(), now))
}

/// Whether a replica of `cluster` would serve.
fn is_well(members: &[Option<Arc<Replica>>], cluster: Cluster, now: Instant) -> bool {
    let of = |replica: &&Arc<Replica>| replica.cluster == cluster && !replica.is_leaving();
    let mut members = members.iter().flatten().filter(of);
    members.any(|replica| replica.is_healthy() && replica.door.admits(now))
}

/// What `place` looks at: the replicas of `members` that are in question for a fetch, of which some are `fit` and some of
/// these are `free`. `score` is asked for those that are fit and not free.
pub(super) fn views<'a>(
    members: &'a [Option<Arc<Replica>>],
    fit: &[&Arc<Replica>],
    free: &[Candidate],
    asker: Asker<'_>,
    score: impl Fn(&Replica) -> f64,
) -> SmallVec<[View<'a>; 16]> {
    let view = |replica: &'a Arc<Replica>| {
        let place = replica.place();
        let fit = fit.binary_search_by_key(&place, |it| it.place()).is_ok();
        let free = free.iter().find(|it| it.replica == place);
        // One that failed this fetch does not count for it, neither way.
        (fit || !asker.avoid.contains(&place)).then(|| View {
            replica: place,
            zone: replica.zone.as_deref(),
            marks: replica.marks,
            standby: replica.cluster != asker.course.first,
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

/// What is said when no replica lets a request in: when the first one will.
pub(super) fn refusal(members: &[Option<Arc<Replica>>], asker: Asker<'_>, now: Instant) -> Failure {
    let course = asker.course;
    let may_serve = |replica: &&Arc<Replica>| {
        let is_asked = replica.cluster == course.first || !course.only && replica.is_healthy();
        is_asked && replica.is_open_to(asker.class)
    };
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

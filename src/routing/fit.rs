//! Which replicas may serve a request, whether they have a slot or not; and what is said when none may.
//!
//! `pool` looks for a free slot among them, `balance` chooses one of those.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::pool::Avoid;
use super::replica::Replica;
use crate::types::{Failure, FailureKind};

/// The replicas that may serve, busy or not: the healthy ones; else healthy standby replicas; else all,
/// because a request that fails is no worse than one that is refused. Replicas that failed this fetch
/// are left out as long as any other may serve. One that leaves never serves, nor does one whose breaker lets nobody in.
pub(super) fn fit<'a>(
    members: &'a [Option<Arc<Replica>>],
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
        if replica.is_leaving() || !replica.door.admits(now) {
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

/// What is said when no replica lets anybody in: when the first one will.
pub(super) fn refusal(members: &[Option<Arc<Replica>>], now: Instant) -> Failure {
    let may_serve =
        |replica: &&Arc<Replica>| !replica.is_leaving() && (!replica.standby || replica.is_healthy());
    let mut waits = members
        .iter()
        .flatten()
        .filter(may_serve)
        .map(|replica| replica.door.state(now).1);
    let Some(first) = waits.next() else {
        return Failure::new(FailureKind::NoReplica, "the upstream has no replicas");
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

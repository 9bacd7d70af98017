//! What is compared: moka as the in-process tier sets it up, plain LRU, and what no policy can do better.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasherDefault;
use std::time::Duration;

use moka::policy::EvictionPolicy;

use crate::traces::Trace;

/// How a capacity is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weighing {
    /// Every answer is one.
    One,
    /// By size.
    Bytes,
}

/// Hits over all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ratio {
    /// Requests that were hits.
    pub(crate) of_requests: f64,
    /// Bytes that were hits.
    pub(crate) of_bytes: f64,
}

/// The ratio of the requests at which `is_hit` says so.
fn replay(trace: &Trace, mut is_hit: impl FnMut(u32) -> bool) -> Ratio {
    let (mut hits, mut hit_bytes, mut bytes) = (0, 0, 0);
    for &answer in &trace.requests {
        let size = trace.sizes[answer as usize];
        bytes += size;
        if is_hit(answer) {
            hits += 1;
            hit_bytes += size;
        }
    }
    Ratio {
        of_requests: f64::from(hits) / trace.requests.len() as f64,
        of_bytes: hit_bytes as f64 / bytes as f64,
    }
}

/// moka as `cache::tier::l1_memory` builds it, but for the hash, with this policy.
pub(crate) fn moka(trace: &Trace, capacity: u64, policy: EvictionPolicy) -> Ratio {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity)
        .weigher(|_, size: &u64| u32::try_from(*size).unwrap_or(u32::MAX))
        .time_to_live(Duration::from_secs(3600))
        .eviction_policy(policy)
        .build_with_hasher(BuildHasherDefault::<DefaultHasher>::default());
    replay(trace, |answer| {
        let is_hit = cache.get(&answer).is_some();
        if !is_hit {
            cache.insert(answer, trace.weight(answer));
        }
        is_hit
    })
}

/// What was asked for longest ago goes first.
pub(crate) fn lru(trace: &Trace, capacity: u64) -> Ratio {
    let mut asked: Vec<Option<u64>> = vec![None; trace.sizes.len()];
    let (mut by_time, mut held) = (BTreeMap::new(), 0);
    let mut time = 0;
    replay(trace, |answer| {
        time += 1;
        let before = asked[answer as usize].replace(time);
        by_time.insert(time, answer);
        if let Some(before) = before {
            by_time.remove(&before);
            return true;
        }
        held += trace.weight(answer);
        while held > capacity
            && let Some((_, oldest)) = by_time.pop_first()
        {
            asked[oldest as usize] = None;
            held -= trace.weight(oldest);
        }
        false
    })
}

/// For each request, at which later one the same answer is asked for; `usize::MAX` for never.
fn next_uses(trace: &Trace) -> Vec<usize> {
    let mut next = vec![usize::MAX; trace.sizes.len()];
    let mut uses = vec![usize::MAX; trace.requests.len()];
    for (at, &answer) in trace.requests.iter().enumerate().rev() {
        uses[at] = std::mem::replace(&mut next[answer as usize], at);
    }
    uses
}

/// What is asked for latest goes first, at once if need be (Belady's MIN with bypass): the optimum for one size.
pub(crate) fn optimum(trace: &Trace, capacity: u64) -> Ratio {
    let uses = next_uses(trace);
    let mut held: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut at = 0;
    replay(trace, |answer| {
        let is_hit = held.remove(&(at, answer));
        held.insert((uses[at], answer));
        if held.len() as u64 > capacity {
            held.pop_last();
        }
        at += 1;
        is_hit
    })
}

/// More than any policy can reach when sizes differ, for which the optimum itself is out of reach: to be a hit, an
/// answer must take its size for the time since it was last asked for, and all that is taken is at most the capacity
/// for the whole time. The cheapest hits first; for bytes, those with the shortest time.
pub(crate) fn bound(trace: &Trace, capacity: u64) -> Ratio {
    let mut waits: Vec<(u128, u64)> = next_uses(trace)
        .iter()
        .enumerate()
        .filter(|(_, next)| **next != usize::MAX)
        .map(|(at, next)| ((next - at) as u128, trace.sizes[trace.requests[at] as usize]))
        .collect();
    let all = u128::from(capacity) * trace.requests.len() as u128;
    let taken = |waits: &[(u128, u64)]| {
        let (mut left, mut hits, mut bytes) = (all as f64, 0.0, 0.0);
        for &(time, size) in waits {
            let cost = time as f64 * size as f64;
            // Of the last one, the part that is left for it.
            let part = (left / cost).min(1.0);
            left -= cost * part;
            hits += part;
            bytes += size as f64 * part;
            if part < 1.0 {
                break;
            }
        }
        (hits, bytes)
    };
    let asked: u64 = trace
        .requests
        .iter()
        .map(|answer| trace.sizes[*answer as usize])
        .sum();
    waits.sort_unstable_by_key(|(time, size)| time * u128::from(*size));
    let (hits, _) = taken(&waits);
    waits.sort_unstable();
    let (_, bytes) = taken(&waits);
    Ratio {
        of_requests: hits / trace.requests.len() as f64,
        of_bytes: bytes / asked as f64,
    }
}

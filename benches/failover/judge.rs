//! What a scenario came to: what clients saw beside what the replicas' journals say.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::load::{End, Seen, Told};
use crate::network::INSTANCES;
use crate::replica::Entry;
use crate::scenario::{Fault, Moments};

/// Writes that are sent within this time of each other may overtake one another on their way.
const ORDER: u64 = 100_000;

/// A scenario's row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) fault: Fault,
    pub(crate) writes: usize,
    pub(crate) acknowledged: usize,
    /// Acknowledged, and in no journal.
    pub(crate) lost: usize,
    /// In the journals more than once.
    pub(crate) doubled: usize,
    /// Carried out by the cluster that had the writes no more, or not yet, as the instance knew.
    pub(crate) misplaced: usize,
    /// Writes that failed visibly, by what the client was told.
    pub(crate) failed: BTreeMap<String, usize>,
    /// Of these, how many had been carried out all the same.
    pub(crate) failed_and_carried_out: usize,
    pub(crate) reads: usize,
    pub(crate) reads_failed: BTreeMap<String, usize>,
    /// Reads that ended with their instance.
    pub(crate) reads_cut: usize,
    /// Seconds from the fault to the first write that the standby carried out, by instance, sorted.
    pub(crate) shift: Vec<f64>,
    /// Seconds from the end of the fault to the first write that the primary carried out, by instance, sorted.
    pub(crate) back: Vec<f64>,
    pub(crate) longest_read: f64,
    pub(crate) longest_write: f64,
}

/// A write in a journal: when, and what its client saw.
struct Done<'a> {
    at: u64,
    write: &'a Seen,
}

/// Compares what was `told` with the `journals` of the primary cluster's replicas and the standby's.
pub(crate) fn judge(
    fault: Fault,
    moments: Moments,
    told: &Told,
    journals: &[Vec<Vec<Entry>>; 2],
) -> Result<Row, String> {
    let writes: HashMap<&str, &Seen> = told.writes.iter().map(|write| (&*write.id, write)).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    let mut done: [Vec<Done<'_>>; 2] = [Vec::new(), Vec::new()];
    for (cluster, replicas) in journals.iter().enumerate() {
        for (at, id) in replicas.iter().flatten() {
            *times.entry(id).or_default() += 1;
            let write = writes
                .get(&**id)
                .ok_or_else(|| format!("nobody has sent the write {id}"))?;
            done[cluster].push(Done { at: *at, write });
        }
        done[cluster].sort_by_key(|done| done.at);
    }
    let [primary, standby] = done;
    let mut row = Row {
        fault,
        writes: told.writes.len(),
        acknowledged: 0,
        lost: 0,
        doubled: times.values().filter(|times| **times > 1).count(),
        misplaced: 0,
        failed: BTreeMap::new(),
        failed_and_carried_out: 0,
        reads: told.reads.len(),
        reads_failed: BTreeMap::new(),
        reads_cut: 0,
        shift: Vec::new(),
        back: Vec::new(),
        longest_read: longest(&told.reads),
        longest_write: longest(&told.writes),
    };
    for write in &told.writes {
        let is_done = times.contains_key(&*write.id);
        match said(&write.end) {
            None => {
                row.acknowledged += 1;
                row.lost += usize::from(!is_done);
            }
            Some(why) => {
                *row.failed.entry(why).or_default() += 1;
                row.failed_and_carried_out += usize::from(is_done);
            }
        }
    }
    for read in &told.reads {
        match said(&read.end) {
            _ if read.end == End::WithInstance => row.reads_cut += 1,
            None => {}
            Some(why) => *row.reads_failed.entry(why).or_default() += 1,
        }
    }
    if !fault.shifts() {
        row.misplaced = standby.len();
        return Ok(row);
    }
    let mut misplaced: HashSet<&str> = HashSet::new();
    for instance in (0..INSTANCES).filter(|instance| moments.killed != Some(*instance)) {
        let of = |done: &&Done<'_>| done.write.instance == instance;
        let followed = standby.iter().filter(of).find(|done| done.at >= moments.fault);
        let returned = primary
            .iter()
            .filter(of)
            .find(|done| done.write.sent >= moments.healed);
        let after = |done: Option<&Done<'_>>| done.map_or(u64::MAX, |done| done.at.saturating_add(ORDER));
        let early = standby.iter().filter(of).filter(|done| done.at < moments.fault);
        // Of an instance that can be told, the others' shift is not its own.
        let stayed = primary.iter().filter(of).filter(|done| {
            done.write.sent > after(followed) && returned.is_none_or(|returned| done.at < returned.at)
        });
        let late = standby
            .iter()
            .filter(of)
            .filter(|done| done.write.sent > after(returned));
        misplaced.extend(early.chain(stayed).chain(late).map(|done| &*done.write.id));
        let seconds = |from: u64, to: &Done<'_>| to.at.saturating_sub(from) as f64 / 1e6;
        if !fault.except().contains(&instance) {
            row.shift
                .extend(followed.map(|done| seconds(moments.fault, done)));
        }
        row.back
            .extend(returned.map(|done| seconds(moments.healed, done)));
    }
    row.misplaced = misplaced.len();
    row.shift.sort_unstable_by(f64::total_cmp);
    row.back.sort_unstable_by(f64::total_cmp);
    Ok(row)
}

fn longest(seen: &[Seen]) -> f64 {
    seen.iter().map(Seen::seconds).fold(0.0, f64::max)
}

/// What a client was told; nothing if all was well.
fn said(end: &End) -> Option<String> {
    match end {
        End::Acknowledged => None,
        End::Answered(status, error) => Some(format!("{status} {error}")),
        End::Broken(why) => Some(why.clone()),
        End::WithInstance => Some("with its instance".to_owned()),
    }
}

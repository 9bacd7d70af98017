//! What the instances of one upstream agree through, as a plain value: what it says holds, so its steps must not
//! overlap. [`redis`](super::redis) does the same in Redis; a proxy without Redis has one of these to itself.

use std::collections::BTreeMap;

use super::record::{Beat, Heard, Proposal, Record};
use super::watch::Look;

/// What an instance has seen counts for so long, in milliseconds.
pub(super) const SIGHT_MS: u64 = 1_000;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    record: Option<Record>,
    /// Who decides, and until when, in milliseconds.
    lease: Option<(String, u64)>,
    looks: BTreeMap<String, (Look, u64)>,
}

impl Ledger {
    /// An instance tells and hears; the lease is its own afterwards if it was or is nobody else's.
    pub(super) fn beat(&mut self, beat: &Beat, lease_ms: u64, now_ms: u64) -> Heard {
        let record = match &mut self.record {
            Some(record) if record.epoch >= beat.record.epoch => record.clone(),
            forgotten => forgotten.insert(beat.record.clone()).clone(),
        };
        let holder = match &self.lease {
            Some((holder, until)) if *until > now_ms && *holder != beat.instance => holder.clone(),
            _ => {
                self.lease = Some((beat.instance.clone(), now_ms + lease_ms));
                beat.instance.clone()
            }
        };
        if let Some(seen) = beat.seen_ms {
            // Who has heard of another store's clock does not count for longer.
            let seen = seen.min(now_ms);
            self.looks.insert(beat.instance.clone(), (beat.look, seen));
        }
        self.looks.retain(|_, (_, at)| *at + SIGHT_MS > now_ms);
        Heard {
            record,
            holder,
            looks: self.looks.values().map(|(look, _)| *look).collect(),
            at_ms: now_ms,
        }
    }

    /// The epoch that it has.
    #[cfg(test)]
    pub(super) fn epoch(&self) -> Option<crate::types::cluster::Epoch> {
        self.record.as_ref().map(|record| record.epoch)
    }

    /// Nobody decides any more.
    #[cfg(test)]
    pub(super) fn end_lease(&mut self) {
        self.lease = None;
    }

    /// Begins the epoch that `proposal` wants, unless another has begun meanwhile, somebody else decides, or it
    /// comes too late.
    pub(super) fn propose(&mut self, proposal: &Proposal, now_ms: u64) -> bool {
        let is_holder = self
            .lease
            .as_ref()
            .is_some_and(|(holder, until)| *until > now_ms && *holder == proposal.instance);
        let is_last = self
            .record
            .as_ref()
            .is_some_and(|record| record.epoch == proposal.from);
        let may = is_last && (is_holder || !proposal.leased) && now_ms <= proposal.until_ms;
        if may {
            self.record = Some(proposal.record.clone());
        }
        may
    }
}

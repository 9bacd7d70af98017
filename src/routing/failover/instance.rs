//! What one instance makes of what it sees and hears: where its writes and reads go, and when it wants a new epoch.
//! Pure; `driver` has the clock, the pool and the store.

use std::time::Duration;

use tokio::time::Instant;

use super::record::{Beat, Cause, Details, Heard, Mode, Proposal, Record};
use super::registry::DEADLINE;
use super::standing::{Standing, Writes};
use super::watch::{Look, Settings, Sight, Watch, together};
use crate::types::cluster::{Cluster, Epoch};

/// Writes are not held for a cluster that will get them later than this.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// How much longer than `after` it may have been so when all come to know that there is too little of a cluster.
const LONGEST_DOUBT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    name: String,
    settings: Settings,
    /// Whether there is nobody else to agree with.
    alone: bool,
    record: Option<Record>,
    /// When it was asked for what confirmed the record last.
    confirmed: Option<Instant>,
    holder: Option<String>,
    /// The time in the store when it was heard last, and when that was.
    store_time: Option<(u64, Instant)>,
    /// What all see together.
    agreed: Watch,
    /// What it sees itself.
    own: Watch,
}

impl Instance {
    /// One that knows nothing yet, unless it is `alone`.
    pub(super) fn new(name: String, settings: Settings, alone: bool, wall_ms: u64) -> Self {
        Self {
            record: alone.then(|| Record::first(&name, wall_ms)),
            name,
            settings,
            alone,
            confirmed: None,
            holder: None,
            store_time: None,
            agreed: Watch::new(settings),
            own: Watch::new(settings),
        }
    }

    /// Looks at the clusters; what to tell of that.
    pub(super) fn beat(
        &mut self,
        (sight, low): (Sight, [Option<Instant>; 2]),
        now: Instant,
        wall_ms: u64,
    ) -> Beat {
        self.own.see(sight, low, now);
        let first = || Record::first(&self.name, wall_ms);
        Beat {
            instance: self.name.clone(),
            record: self.record.clone().unwrap_or_else(first),
            look: Look {
                sight,
                low_ms: self.own.low_ms(now),
            },
            // The reply took some time: it is later there by that. So what is told late does not count for longer.
            seen_ms: self.store_ms(now),
        }
    }

    /// The time in the store, in milliseconds, as far as it is known; it may be later there by the time of one reply.
    fn store_ms(&self, now: Instant) -> Option<u64> {
        let (ms, heard) = self.store_time?;
        Some(ms + now.saturating_duration_since(heard).as_millis() as u64)
    }

    /// Takes in what was heard to a beat that was sent at `sent`. Gives the epoch before if this is another.
    pub(super) fn hear(&mut self, heard: Heard, sent: Instant, now: Instant) -> Option<Epoch> {
        if let Some(Look { sight, low_ms }) = together(&heard.looks) {
            // What has been known for longer was not enough while others saw it otherwise: it begins with their leaving.
            let known = self.settings.after + LONGEST_DOUBT;
            let since = |ms: Option<u64>| {
                let lasts = Duration::from_millis(ms?);
                now.checked_sub(lasts).filter(|_| lasts <= known)
            };
            self.agreed.see(sight, low_ms.map(since), now);
        }
        self.holder = Some(heard.holder);
        self.store_time = Some((heard.at_ms, now));
        self.adopt(heard.record, sent)
    }

    /// Takes in a record that the store has confirmed to a question of `sent`.
    pub(super) fn adopt(&mut self, record: Record, sent: Instant) -> Option<Epoch> {
        let before = self.record.as_ref().map(|record| record.epoch);
        if before.is_some_and(|before| record.epoch < before) {
            // Of a store that has forgotten; it is told with the next beat.
            return None;
        }
        self.confirmed = self.confirmed.max(Some(sent));
        let is_new = before.is_none_or(|before| record.epoch > before);
        self.record = Some(record);
        before.filter(|_| is_new)
    }

    /// The new epoch that it wants, if it decides and the time for one has come.
    pub(super) fn wants(&self, now: Instant, wall_ms: u64) -> Option<Proposal> {
        let record = self.record.as_ref().filter(|_| self.holds_lease())?;
        let active = record.epoch.cluster();
        let cause = self.agreed.due(active, record.details.mode, now)?;
        let mode = record.details.mode;
        self.proposal(record, (active.other(), mode, cause), true, (now, wall_ms))
    }

    /// What an operator wants. `None` while it is not known which epoch this is.
    pub(super) fn steer(&self, mode: Mode, now: Instant, wall_ms: u64) -> Option<Proposal> {
        let record = self.record.as_ref()?;
        let cluster = mode.cluster().unwrap_or(record.epoch.cluster());
        self.proposal(record, (cluster, mode, Cause::Operator), false, (now, wall_ms))
    }

    fn proposal(
        &self,
        before: &Record,
        (cluster, mode, cause): (Cluster, Mode, Cause),
        leased: bool,
        (now, at_ms): (Instant, u64),
    ) -> Option<Proposal> {
        Some(Proposal {
            instance: self.name.clone(),
            from: before.epoch,
            record: Record {
                epoch: before.epoch.next_of(cluster),
                details: Details {
                    mode,
                    cause,
                    by: self.name.clone(),
                    at_ms,
                },
            },
            leased,
            until_ms: self.store_ms(now)? + DEADLINE.as_millis() as u64,
        })
    }

    /// Where requests go now.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let Some(record) = &self.record else {
            return Standing::UNKNOWN;
        };
        let (epoch, mode) = (record.epoch, record.details.mode);
        let active = epoch.cluster();
        let (reads, writes) = if self.is_confirmed(now) {
            // What no other sees is no reason for a shift, so there is nothing to wait for.
            let is_alone_in_it = self.own.due(active, mode, now).is_some()
                && self.agreed.low_ms(now)[active as usize].is_none();
            let hold = mode == Mode::Auto && self.settings.after <= LONGEST_HOLD && !is_alone_in_it;
            (active, Writes::Open { hold })
        } else if self.own.due(active, mode, now).is_some() {
            (active.other(), Writes::Refused(UNCONFIRMED))
        } else if self.own.last().is_some_and(|sight| is_gone(sight, active)) {
            // Nobody there would take it; to try would only be held against replicas that are known to be gone.
            (active, Writes::Refused(UNCONFIRMED))
        } else {
            (active, Writes::Open { hold: false })
        };
        Standing { epoch, reads, writes }
    }

    /// Whether what the others do is known: heard a short time ago, or there are none.
    fn is_confirmed(&self, now: Instant) -> bool {
        let is_fresh = |at| now.saturating_duration_since(at) <= self.settings.lease_ttl;
        self.alone || self.confirmed.is_some_and(is_fresh)
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    pub(super) fn holds_lease(&self) -> bool {
        self.holder.as_ref() == Some(&self.name)
    }

    pub(super) fn confirmed(&self) -> Option<Instant> {
        self.confirmed
    }

    /// Who says where the writes go, as far as is known.
    pub(super) fn mode(&self) -> Mode {
        self.record
            .as_ref()
            .map(|record| record.details.mode)
            .unwrap_or_default()
    }

    /// What all see together, while they can be heard, and what it sees itself.
    pub(super) fn sights(&self, now: Instant) -> [Option<Sight>; 2] {
        let agreed = self.agreed.last().filter(|_| self.is_confirmed(now));
        [agreed, self.own.last()]
    }
}

/// Whether nothing is left of `cluster`, and something of the other.
fn is_gone(sight: Sight, cluster: Cluster) -> bool {
    sight.of(cluster) <= 0.0 && sight.of(cluster.other()) > 0.0
}

const UNCONFIRMED: &str = "the cluster that had the writes is not healthy, and it cannot be confirmed that another has \
                           them: Redis does not answer";

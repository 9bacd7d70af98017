//! Single flight across instances: a lease in the shared tier lets one of them fetch while the others wait for what
//! it stores, for at most the lease, and then go on their own.
//!
//! A leader that dies costs its followers one lease; one whose answer is not stored gives the lease back, and they
//! go on at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::entry::{Entry, Staleness};
use super::fetching::{Miss, Shared};
use super::invalidation::{SharedVersions, TagVersions};
use super::tier::l2::Lease;

/// Pauses between looks for the answer: the first, doubled up to the last.
const FIRST_LOOK: Duration = Duration::from_millis(4);
const LAST_LOOK: Duration = Duration::from_millis(32);

/// Who fetches. With the versions that the tier had before the fetch begins.
pub(super) enum TakeOff {
    /// This instance, for itself.
    Alone(Option<SharedVersions>),
    /// This instance, for all.
    Leading(Option<SharedVersions>, Lease),
    /// Another one has.
    Elsewhere(Arc<Entry>),
}

impl Shared {
    /// Decides who fetches what `miss` wants. `shared`: the versions that the tier had, if it could be asked;
    /// `versions` are renewed, as what is fetched after the wait is newer.
    pub(super) async fn take_off(
        &self,
        miss: &Miss,
        versions: &mut TagVersions,
        shared: Option<SharedVersions>,
    ) -> TakeOff {
        let Some(l2) = self
            .l2
            .as_ref()
            .filter(|_| shared.is_some() && self.config.shares_flight(miss.class))
        else {
            return TakeOff::Alone(shared);
        };
        let lease = match l2.lease(&miss.key).await {
            None => return TakeOff::Alone(shared),
            Some(lease) => lease,
        };
        let began = self.clock.now().monotonic;
        let mut pause = FIRST_LOOK;
        loop {
            *versions = self.tags.renewed(versions);
            // Also by who has the lease: the one before may just have stored its answer.
            let found = self
                .read_shared(&miss.key, miss.outcome.template, versions, true)
                .await;
            let now = self.clock.now().monotonic;
            if let Some(entry) = found.entry
                && entry.staleness(false, now) == Staleness::Fresh
            {
                l2.metrics.followed.inc();
                return TakeOff::Elsewhere(entry);
            }
            let waited = now.saturating_duration_since(began);
            let goes_on = found.leased && waited < l2.lease_time();
            match lease {
                // Unless it has to look again, because something changed while it looked.
                Some(lease) if !goes_on || self.tags.is_current(versions) => {
                    l2.metrics.led.inc();
                    return TakeOff::Leading(found.versions, lease);
                }
                None if !goes_on => {
                    l2.metrics.lease_lost.inc();
                    return TakeOff::Alone(found.versions);
                }
                _ => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }
}

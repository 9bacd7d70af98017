//! Where the instances of an upstream meet: [`Registry`], and the one that an instance has to itself.

use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::ledger::Ledger;
use super::record::{Beat, Heard, Proposal};
use crate::types::time::Clock;

/// The longest that one question to a registry may take.
pub(super) const DEADLINE: Duration = Duration::from_millis(400);

/// What an answer of a registry is: an error means that nothing is known.
pub(super) type Reply<T> = BoxFuture<'static, Result<T, String>>;

/// Where instances tell and hear, and one at a time may begin an epoch.
pub(super) trait Registry: Send + Sync {
    /// Tells and hears; takes or keeps the lease if it is nobody else's.
    fn beat(&self, beat: &Beat) -> Reply<Heard>;
    /// Begins an epoch, unless another has begun meanwhile, or the lease is needed and somebody else has it.
    fn propose(&self, proposal: &Proposal) -> Reply<bool>;
}

/// That of an instance that is alone.
pub(super) struct Alone {
    ledger: Mutex<Ledger>,
    clock: Clock,
}

impl Alone {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            ledger: Mutex::default(),
            clock,
        }
    }
}

/// Nobody else wants it.
const LEASE_MS: u64 = 1_000;

impl Registry for Alone {
    fn beat(&self, beat: &Beat) -> Reply<Heard> {
        let heard = self.ledger.lock().beat(beat, LEASE_MS, wall_ms(&self.clock));
        Box::pin(async { Ok(heard) })
    }

    fn propose(&self, proposal: &Proposal) -> Reply<bool> {
        let begun = self.ledger.lock().propose(proposal, wall_ms(&self.clock));
        Box::pin(async move { Ok(begun) })
    }
}

/// Milliseconds of Unix time.
pub(super) fn wall_ms(clock: &Clock) -> u64 {
    let since = clock.now().wall.duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

//! Where stored answers live: `l1_memory` in this process, `l2` in what the instances share.
//!
//! `l2` decides (deadline, gate, codec, queue); the store itself is behind [`Tier`], which `l2_redis` does with
//! Redis, and the tests of many instances with a table of theirs.

pub(super) mod gate;
pub mod l1_memory;
pub(super) mod l2;
pub(super) mod l2_redis;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::invalidation::SharedVersions;
use super::key::Key;

/// What becomes of one command. It is on its way when it is first polled, whether or not it is polled again.
pub(super) type Reply<T> = Pin<Box<dyn Future<Output = Result<T, TierError>> + Send>>;

/// A store that instances share, and a board on which they tell each other what ends. Commands wait for as long as
/// the store does; deadlines are the caller's.
pub(super) trait Tier: Debug + Send + Sync {
    /// What is stored under `key`, the versions of `slots`, and whether somebody has the `lease` if that is asked, as
    /// of one moment after the call.
    fn read(&self, key: &Key, slots: &[u16], lease: bool) -> Reply<Seen>;

    /// Stores `value` for `life`, and gives back the lease if the caller has it.
    fn write(&self, key: &Key, value: Bytes, life: Duration, release: bool) -> Reply<()>;

    /// Takes the lease to fetch for all; tells whether it was free.
    fn lease(&self, key: &Key, life: Duration) -> Reply<bool>;

    /// Gives back the lease.
    fn release(&self, key: &Key) -> Reply<()>;

    /// Changes versions, then puts a message on the board.
    fn announce(&self, notice: &Notice) -> Reply<()>;

    /// Puts a message on the board and asks every server whether it lives.
    fn beat(&self, message: Bytes) -> Reply<()>;

    /// The slots that are unsettled, and until when (milliseconds since the Unix epoch).
    fn unsettled(&self) -> Reply<Vec<(u16, u64)>>;

    /// Replaces the connections: one of them does not answer any more.
    fn reset(&self, why: &'static str);
}

/// What there is under a key.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The value.
    pub value: Option<Bytes>,
    /// Whether somebody has the lease to fetch it; `false` when that was not asked.
    pub leased: bool,
    /// Versions; `None` while there is no epoch.
    pub versions: Option<SharedVersions>,
    /// Those of the slots that are unsettled, and until when (milliseconds since the Unix epoch).
    pub unsettled: Vec<(u16, u64)>,
}

/// A change of versions with the message that tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Notice {
    /// Slots to bump.
    pub slots: Vec<u16>,
    /// Whether a new epoch begins: everything ends.
    pub all: bool,
    /// What is to be remembered of the slots for instances that start later.
    pub mark: Mark,
    /// The message.
    pub message: Bytes,
}

/// What is remembered of slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing.
    #[default]
    None,
    /// They are unsettled until then, milliseconds since the Unix epoch.
    Unsettled(u64),
}

/// Why a command came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TierError {
    /// There is no connection.
    #[error("no connection")]
    Down,
    /// The store said so.
    #[error("{0}")]
    Failed(String),
}

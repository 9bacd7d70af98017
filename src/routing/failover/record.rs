//! What instances agree about: the epoch with all that belongs to it, and what they tell and hear of it.

use serde::{Deserialize, Serialize};

use super::watch::Look;
use crate::types::cluster::{Cluster, Epoch};

/// Who says where the writes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// How the clusters fare.
    #[default]
    Auto,
    /// An operator: to the primary, whatever happens.
    Primary,
    /// An operator: to the standby.
    Standby,
}

impl Mode {
    /// The cluster that an operator has named.
    pub fn cluster(self) -> Option<Cluster> {
        match self {
            Self::Auto => None,
            Self::Primary => Some(Cluster::Primary),
            Self::Standby => Some(Cluster::Standby),
        }
    }

    /// Its name in the command and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// Why an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is the first.
    Start,
    /// Too little of the cluster before was healthy.
    Unhealthy,
    /// The primary is well again.
    Recovered,
    /// An operator wanted it.
    Operator,
}

impl Cause {
    /// Every cause; `cause as usize` is its place.
    pub const ALL: [Self; 4] = [Self::Start, Self::Unhealthy, Self::Recovered, Self::Operator];

    /// The word used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Unhealthy => "unhealthy",
            Self::Recovered => "recovered",
            Self::Operator => "operator",
        }
    }
}

/// An epoch. Whatever changes makes a new one, so that of two records the one with the higher number holds, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: Epoch,
    pub(super) details: Details,
}

/// What belongs to an epoch; in the store one JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Details {
    /// Who says where the writes go.
    pub(super) mode: Mode,
    /// Why it began.
    pub(super) cause: Cause,
    /// The instance that began it.
    pub(super) by: String,
    /// When, in milliseconds of Unix time, by that instance's clock.
    pub(super) at_ms: u64,
}

impl Record {
    pub(super) fn first(by: &str, at_ms: u64) -> Self {
        Self {
            epoch: Epoch::FIRST,
            details: Details {
                mode: Mode::Auto,
                cause: Cause::Start,
                by: by.to_owned(),
                at_ms,
            },
        }
    }
}

/// What an instance tells with each beat.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Beat {
    pub(super) instance: String,
    /// What it knows, in case that the store has forgotten; without it the first record.
    pub(super) record: Record,
    /// What it sees of the clusters,
    pub(super) look: Look,
    /// and when, in milliseconds by the store's clock: never later than it was. Without it what it sees does not count.
    pub(super) seen_ms: Option<u64>,
}

/// What it hears.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heard {
    pub(super) record: Record,
    /// Who decides.
    pub(super) holder: String,
    /// What those saw of late who have told.
    pub(super) looks: Vec<Look>,
    /// The time in the store, in milliseconds.
    pub(super) at_ms: u64,
}

/// A new epoch that an instance wants, in place of the one before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proposal {
    pub(super) instance: String,
    pub(super) from: Epoch,
    pub(super) record: Record,
    /// Whether it may only be the holder's.
    pub(super) leased: bool,
    /// Until when it may begin, in milliseconds by the store's clock: who proposed it gives up waiting then, and says that
    /// nothing has changed.
    pub(super) until_ms: u64,
}

//! Where requests go by cluster: how an upstream stands at a moment, and what follows for one request. Pure.

use std::borrow::Cow;

use crate::types::cluster::{Bond, Cluster, Epoch, WorkKind};
use crate::types::{Failure, FailureKind};

/// How an upstream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::routing) struct Standing {
    /// The last that is known.
    pub(super) epoch: Epoch,
    /// Where reads go first.
    pub(super) reads: Cluster,
    pub(super) writes: Writes,
}

/// What becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// They go to the epoch's cluster. With `hold` they wait while it is not healthy and the other is: the other will
    /// soon have them.
    Open { hold: bool },
    /// Nobody knows where they should go; says why.
    Refused(&'static str),
}

/// What of a request matters for the choice of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::routing) struct Wish {
    /// Whether it does no harm wherever it goes (RFC 9110 section 9.2.1).
    pub(in crate::routing) safe: bool,
    /// The work that it is about: the epoch in which that was begun, and how strongly it belongs there.
    pub(in crate::routing) owner: Option<(WorkKind, Epoch, Bond)>,
    /// Whether the other cluster can go on with that work when its own is gone.
    pub(in crate::routing) may_move: bool,
}

impl Wish {
    /// Of a request that is about no work.
    pub(in crate::routing) fn plain(safe: bool) -> Self {
        Self {
            safe,
            owner: None,
            may_move: false,
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::routing) struct Course {
    /// The cluster that is asked, or asked first.
    pub(in crate::routing) first: Cluster,
    /// Whether no other may be asked.
    pub(in crate::routing) only: bool,
    /// Whether it waits while that is not healthy and the other is.
    pub(in crate::routing) hold: bool,
    /// Of what work that cluster has gone away if it is not healthy.
    pub(in crate::routing) gone: Option<WorkKind>,
    /// The epoch to which what it begins belongs.
    pub(in crate::routing) epoch: Epoch,
}

impl Standing {
    /// Of an upstream with one cluster, or of an instance that is alone and at its beginning.
    pub(in crate::routing) const FIRST: Self = Self {
        epoch: Epoch::FIRST,
        reads: Cluster::Primary,
        writes: Writes::Open { hold: false },
    };

    /// Of an instance that has never heard.
    pub(super) const UNKNOWN: Self = Self {
        writes: Writes::Refused("it is not known which cluster has the writes: Redis does not answer"),
        ..Self::FIRST
    };

    /// The cluster that has the writes, as far as is known.
    pub(in crate::routing) fn active(self) -> Cluster {
        self.epoch.cluster()
    }

    /// Whether writes go anywhere.
    pub(super) fn has_writes(self) -> bool {
        matches!(self.writes, Writes::Open { .. })
    }

    /// Where a request goes.
    ///
    /// # Errors
    /// [`FailureKind::Fenced`] for a write while nobody knows where it should go.
    pub(in crate::routing) fn course(self, wish: Wish) -> Result<Course, Failure> {
        let course = |first, only| Course {
            first,
            only,
            hold: false,
            gone: None,
            epoch: self.epoch,
        };
        let hold = self.writes == Writes::Open { hold: true };
        match (wish.owner, wish.safe, self.writes) {
            (Some((kind, epoch, Bond::Must)), _, _) => {
                let is_active = epoch.cluster() == self.active();
                Ok(Course {
                    hold: is_active && hold,
                    gone: (!is_active).then_some(kind),
                    epoch,
                    ..course(epoch.cluster(), true)
                })
            }
            (Some((_, epoch, Bond::Prefers)), true, _) => Ok(course(epoch.cluster(), false)),
            (_, true, _) => Ok(course(self.reads, false)),
            (_, false, Writes::Open { .. }) => Ok(Course {
                hold,
                ..course(self.active(), true)
            }),
            (_, false, Writes::Refused(why)) => Err(Failure {
                retry_after: Some(1),
                ..Failure::new(FailureKind::Fenced, why)
            }),
        }
    }
}

/// What is said when the cluster that has `work` is gone.
pub(in crate::routing) fn gone(work: WorkKind, cluster: Cluster) -> Failure {
    let detail = format!(
        "this {} is in the {} cluster, which is gone for now",
        work.as_str(),
        cluster.as_str()
    );
    Failure {
        retry_after: Some(5),
        ..Failure::new(FailureKind::OwnerGone, Cow::Owned(detail))
    }
}

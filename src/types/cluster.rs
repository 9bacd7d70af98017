//! The two clusters of an upstream, the epochs in which one of them has the writes, and work that belongs to one.
//!
//! `classify` says which work a request is about and which it begins, routing remembers who has it.

use serde::{Deserialize, Serialize};

use super::ids::hex;

/// One of the two sets of replicas that an upstream can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cluster {
    /// `replicas`, and what is found beside them.
    Primary,
    /// `standby`.
    Standby,
}

impl Cluster {
    /// Both; `cluster as usize` is its place.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Standby];

    /// The one that a replica belongs to.
    pub fn of(standby: bool) -> Self {
        if standby { Self::Standby } else { Self::Primary }
    }

    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Standby,
            Self::Standby => Self::Primary,
        }
    }

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// A time in which writes go to one cluster. Its number says to which, so that no two instances can mean different
/// clusters by one epoch, whatever a store has lost: odd ones are the primary's, even ones the standby's. A fencing
/// number: of two records the one with the higher epoch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first.
    pub const FIRST: Self = Self(1);

    /// Where its writes go.
    pub fn cluster(self) -> Cluster {
        match self.0 % 2 {
            1 => Cluster::Primary,
            _ => Cluster::Standby,
        }
    }

    /// The next one that is `cluster`'s.
    #[must_use]
    pub fn next_of(self, cluster: Cluster) -> Self {
        let next = Self(self.0 + 1);
        if next.cluster() == cluster {
            next
        } else {
            Self(self.0 + 2)
        }
    }
}

/// What sort of work outlives the request that began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkKind {
    /// A generation that can be stopped: `task_id`.
    Task,
    /// A run of a workflow: `workflow_run_id`.
    WorkflowRun,
    /// Documents that are being indexed: `batch`.
    Batch,
    /// A conversation: `conversation_id`.
    Conversation,
}

impl WorkKind {
    /// Its name for operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::WorkflowRun => "workflow run",
            Self::Batch => "batch",
            Self::Conversation => "conversation",
        }
    }
}

/// One piece of such work: a digest of its kind and id, in a form that a key in Redis can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// What sort.
    pub kind: WorkKind,
    /// Which one.
    pub id: [u8; 16],
}

impl Work {
    /// The one that Dify names so.
    pub fn named(kind: WorkKind, id: &[u8]) -> Self {
        let mut digest = [0; 16];
        let mut hasher = blake3::Hasher::new();
        // Dify takes ids in capitals, too.
        hasher.update(&[kind as u8]).update(&id.to_ascii_lowercase());
        hasher.finalize_xof().fill(&mut digest);
        Self { kind, id: digest }
    }

    /// Its digest in hexadecimal, 32 digits.
    pub fn to_hex(&self) -> String {
        hex(&self.id)
    }
}

/// How strongly a request belongs to the cluster that has its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bond {
    /// Only there can it be carried out: to stop, to ask how far it is, to go on with it.
    Must,
    /// Best asked there, but another may know as well.
    Prefers,
}

/// Under which name an answer tells the id of work that the request began; the first text behind that name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begins {
    /// The name in JSON, wherever it stands in the answer.
    pub name: &'static str,
    /// What sort of work.
    pub kind: WorkKind,
}

/// What a request has to do with work that outlives requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Works {
    /// The work that it is about.
    pub about: Option<(Work, Bond)>,
    /// Whether its body may name the conversation that it goes on with.
    pub in_body: bool,
    /// What its answer tells of work that it began.
    pub begins: &'static [Begins],
}

impl Works {
    /// Takes in which conversation the body names, if any.
    pub fn goes_on_with(&mut self, conversation: Option<String>) {
        let work = |id: String| (Work::named(WorkKind::Conversation, id.as_bytes()), Bond::Must);
        self.about = conversation.map(work).or(self.about);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_one_clusters_and_a_later_one_of_either_can_be_found() {
        assert_eq!(Epoch::FIRST.cluster(), Cluster::Primary);
        for number in 1..10 {
            let epoch = Epoch(number);
            for cluster in Cluster::ALL {
                let next = epoch.next_of(cluster);
                assert!(next > epoch && next.0 <= number + 2);
                assert_eq!(next.cluster(), cluster);
            }
        }
    }

    #[test]
    fn work_of_two_kinds_under_one_id_is_two_pieces() {
        let [task, run] = [WorkKind::Task, WorkKind::WorkflowRun].map(|kind| Work::named(kind, b"id"));
        assert_ne!(task.id, run.id);
        assert_eq!(task, Work::named(WorkKind::Task, b"id"));
        assert_ne!(task, Work::named(WorkKind::Task, b"ie"));
        assert_eq!(task, Work::named(WorkKind::Task, b"ID"));
        assert_eq!(task.to_hex().len(), 32);
    }
}

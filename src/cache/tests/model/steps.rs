//! The alphabet of histories: what may happen next. Numbers choose among what there is at that moment, so that
//! every sequence of steps means something and a failing one can be cut short.

use proptest::prelude::*;

/// How a read asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Plain,
    NoCache,
    OnlyIfCached,
    Head,
}

/// What kind of write it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteKind {
    Known,
    /// Takes effect when its head is sent and again when its stream ends.
    Generation,
    /// Not in the route table.
    Unknown,
}

/// How the origin answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    NotFound,
    Unauthorized,
    Broken500,
    NoStore,
    TimedOut,
    Refused,
}

impl Answer {
    /// Whether an answer of this kind is never shared.
    pub(super) fn is_unshareable(self) -> bool {
        matches!(self, Self::Unauthorized | Self::Broken500 | Self::NoStore)
    }

    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::TimedOut | Self::Refused)
    }
}

/// What a purge means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Key(usize, usize),
    Tag(usize),
    Route(usize),
    Principal(usize),
    All,
}

/// One step of a history.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A client asks for a resource; its future is not polled yet.
    /// `early`: the origin reads its answer when the request comes.
    Read {
        resource: usize,
        who: usize,
        how: How,
        early: bool,
    },
    /// A client writes; `tags` is a set of bits.
    Write {
        tags: u8,
        kind: WriteKind,
    },
    /// A write goes out and its client leaves at once.
    Abandon {
        tags: u8,
    },
    /// Spawned tasks run until they wait.
    Tick,
    /// A client's future or body is polled once.
    Poll(usize),
    PollAll,
    /// A client leaves.
    Cancel(usize),
    /// The origin reads what it is going to answer.
    Snapshot(usize),
    /// The origin sends a head.
    Answer(usize, Answer),
    /// The origin sends the next frame, or the end.
    Frame(usize),
    /// The answer's body breaks off.
    Break(usize),
    /// The origin sends all that is left of a good answer, and everyone takes it.
    Finish(usize),
    /// A write takes effect.
    Effect(usize),
    /// A resource changes at the origin without any write through this proxy.
    Change(usize),
    Purge(Aim, bool),
    /// Milliseconds.
    Advance(u64),
    /// An entry is evicted.
    Evict {
        resource: usize,
        who: usize,
    },
}

fn resource() -> impl Strategy<Value = usize> {
    prop_oneof![12 => Just(0_usize), 1 => Just(1), 1 => Just(2)]
}

fn who() -> impl Strategy<Value = usize> {
    prop_oneof![12 => Just(0_usize), 1 => Just(1)]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        10 => Just(Answer::Ok),
        1 => Just(Answer::NotFound),
        1 => Just(Answer::Unauthorized),
        2 => Just(Answer::Broken500),
        1 => Just(Answer::NoStore),
        2 => Just(Answer::TimedOut),
        1 => Just(Answer::Refused),
    ]
}

/// `ends`: how often something ends what is stored, in a hundred steps or so.
fn step(ends: u32) -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        8 => Just(How::Plain),
        2 => Just(How::NoCache),
        1 => Just(How::OnlyIfCached),
        1 => Just(How::Head),
    ];
    let kind = prop_oneof![
        3 => Just(WriteKind::Known),
        2 => Just(WriteKind::Generation),
        1 => Just(WriteKind::Unknown),
    ];
    let aim = prop_oneof![
        (resource(), who()).prop_map(|(resource, who)| Aim::Key(resource, who)),
        (0..2_usize).prop_map(Aim::Tag),
        resource().prop_map(Aim::Route),
        who().prop_map(Aim::Principal),
        Just(Aim::All),
    ];
    let millis = prop_oneof![
        2 => Just(500_u64),
        2 => Just(1_000),
        2 => Just(2_900),
        4 => Just(5_000),
        3 => Just(9_900),
        1 => Just(16_000),
        1 => Just(29_900),
        4 => Just(30_000),
    ];
    let n = || 0..8_usize;
    prop_oneof![
        18 => (resource(), who(), how, any::<bool>())
            .prop_map(|(resource, who, how, early)| Step::Read { resource, who, how, early }),
        ends => (1..4_u8, kind).prop_map(|(tags, kind)| Step::Write { tags, kind }),
        ends => prop_oneof![Just(1_u8), Just(3)].prop_map(|tags| Step::Abandon { tags }),
        14 => Just(Step::Tick),
        10 => n().prop_map(Step::Poll),
        6 => Just(Step::PollAll),
        3 => n().prop_map(Step::Cancel),
        3 => n().prop_map(Step::Snapshot),
        9 => (n(), answer()).prop_map(|(n, answer)| Step::Answer(n, answer)),
        10 => n().prop_map(Step::Frame),
        1 => n().prop_map(Step::Break),
        14 => n().prop_map(Step::Finish),
        7 => n().prop_map(Step::Effect),
        2 => resource().prop_map(Step::Change),
        ends => (aim, any::<bool>()).prop_map(|(aim, soft)| Step::Purge(aim, soft)),
        8 => millis.prop_map(Step::Advance),
        1 => (resource(), who()).prop_map(|(resource, who)| Step::Evict { resource, who }),
    ]
}

/// Histories, quiet ones in which what is stored grows old, and stormy ones.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        proptest::collection::vec(step(1), 1..60),
        proptest::collection::vec(step(3), 1..100),
        proptest::collection::vec(step(8), 1..60),
    ]
}

//! What may happen in a history. Numbers choose among what there is at that moment, so that a history makes sense
//! however it is cut.

use proptest::prelude::*;

use super::database::Mood;

/// How many instances there are.
pub(super) const INSTANCES: usize = 3;
/// The kinds of things that come and go.
pub(super) const KINDS: usize = 4;

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A thing of a kind is created through an instance; the database shows it so many milliseconds late.
    Create(usize, usize, u64),
    /// One is created on another road.
    Behind(usize),
    /// Something is deleted through an instance.
    Delete(usize, usize),
    /// Something is deleted on another road.
    DeleteBehind(usize),
    /// A client asks an instance for something that is or was there.
    Ask(usize, usize),
    /// It asks for something of a kind that was never there.
    AskRandom(usize, usize),
    /// So many ask for the same at once.
    Crowd(usize, usize, usize),
    /// So many ask at once for things that were never there, and the last for one that is or was.
    Burst(usize, usize, usize),
    /// Milliseconds pass.
    Pass(u64),
    /// An instance reads what is new.
    Refresh(usize),
    /// It reads everything, while other things happen.
    Rebuild(usize),
    /// It ends and another starts in its place; whether that only observes.
    Restart(usize, bool),
    /// The database changes its mood.
    Mood(Mood),
    /// Messages between instances come through, or not.
    Redis(bool),
}

/// A history.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    let instance = || 0..INSTANCES;
    let kind = || 0..KINDS;
    let nth = || 0..8usize;
    let late = prop_oneof![3 => Just(0u64), 1 => 1..50_000u64];
    let pass = prop_oneof![
        4 => 1..300u64,
        4 => 300..6_000u64,
        2 => 6_000..90_000u64,
    ];
    let mood = prop_oneof![
        3 => Just(Mood::Well),
        1 => Just(Mood::Fails),
        1 => Just(Mood::Hangs),
    ];
    let step = prop_oneof![
        10 => (instance(), kind(), late).prop_map(|(i, k, late)| Step::Create(i, k, late)),
        6 => kind().prop_map(Step::Behind),
        2 => (instance(), nth()).prop_map(|(i, n)| Step::Delete(i, n)),
        3 => nth().prop_map(Step::DeleteBehind),
        30 => (instance(), nth()).prop_map(|(i, n)| Step::Ask(i, n)),
        8 => (instance(), kind()).prop_map(|(i, k)| Step::AskRandom(i, k)),
        3 => (instance(), nth(), 2..12usize).prop_map(|(i, n, count)| Step::Crowd(i, n, count)),
        4 => (instance(), nth(), 1..12usize).prop_map(|(i, n, count)| Step::Burst(i, n, count)),
        20 => pass.prop_map(Step::Pass),
        3 => instance().prop_map(Step::Refresh),
        4 => instance().prop_map(Step::Rebuild),
        2 => (instance(), prop::bool::weighted(0.3)).prop_map(|(i, observe)| Step::Restart(i, observe)),
        3 => mood.prop_map(Step::Mood),
        2 => prop::bool::weighted(0.6).prop_map(Step::Redis),
    ];
    prop::collection::vec(step, 60..140)
}

//! What may happen in a history.

use proptest::prelude::*;

/// Instances, and things that can be read; each depends on the tags of its bits.
pub(super) const INSTANCES: usize = 3;
pub(super) const FILLS: [u8; 3] = [0b01, 0b10, 0b11];
pub(super) const RESOURCES: usize = FILLS.len();

/// Which faults there are besides slow fetches and cut off writes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) messages: bool,
    pub(super) links: bool,
    pub(super) store: bool,
}

/// What the way from an instance to the store is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Road {
    /// It works.
    Open,
    /// It is closed, and that is known at once.
    Cut,
    /// Nothing comes back, and nothing arrives.
    Stuck,
    /// Nothing comes back, but everything arrives.
    OneWay,
    /// Nothing comes back; everything arrives when the road changes.
    Late,
}

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A client asks an instance for a resource.
    Read(usize, usize),
    /// A client asks for it and wants no stored answer.
    ReadAnew(usize, usize),
    /// A client changes what has these tags.
    Write(usize, u8),
    /// The origin reads what the n-th open fetch asks for.
    Snapshot(usize),
    /// It answers the n-th open fetch; with what it read, or reads now.
    Finish(usize),
    /// The n-th open write takes effect.
    Effect(usize),
    /// The n-th open write is answered.
    Answer(usize),
    /// It is cut off, and may still take effect.
    CutOff(usize),
    /// An operator changes something by another road and purges a tag, or everything.
    Purge(usize, Option<u8>),
    /// Time passes, in milliseconds.
    Advance(u64),
    /// An instance ends and another one starts in its place.
    Restart(usize),
    /// A resource goes out of an instance's memory.
    Evict(usize, usize),
    /// The next news to an instance are lost.
    Lose(usize),
    /// Messages to an instance wait, or come again.
    Hold(usize, bool),
    /// The way to the store changes.
    Road(usize, Road),
    /// The store starts again, empty.
    Empty,
    /// The replica has got this far.
    Replicate,
    /// The replica takes over.
    FailOver,
    /// The versions are evicted.
    ForgetVersions,
    /// The answers are evicted.
    ForgetValues,
}

fn instance() -> std::ops::Range<usize> {
    0..INSTANCES
}

/// A history with these faults.
pub(super) fn history(faults: Faults) -> impl Strategy<Value = Vec<Step>> {
    let on = |wanted: bool, weight: u32| if wanted { weight } else { 0 };
    let road = prop_oneof![
        5 => Just(Road::Open),
        1 => Just(Road::Cut),
        1 => Just(Road::Stuck),
        1 => Just(Road::OneWay),
        1 => Just(Road::Late),
    ];
    let advance = prop_oneof![
        4 => 1..60u64,
        4 => 60..1500u64,
        1 => 1500..8000u64,
    ];
    let mut steps: Vec<(u32, BoxedStrategy<Step>)> = vec![
        (
            40,
            (instance(), 0..RESOURCES)
                .prop_map(|(i, r)| Step::Read(i, r))
                .boxed(),
        ),
        (
            2,
            (instance(), 0..RESOURCES)
                .prop_map(|(i, r)| Step::ReadAnew(i, r))
                .boxed(),
        ),
        (
            10,
            (instance(), 1..4u8)
                .prop_map(|(i, tags)| Step::Write(i, tags))
                .boxed(),
        ),
        (10, any::<usize>().prop_map(Step::Snapshot).boxed()),
        (28, any::<usize>().prop_map(Step::Finish).boxed()),
        (12, any::<usize>().prop_map(Step::Effect).boxed()),
        (10, any::<usize>().prop_map(Step::Answer).boxed()),
        (5, any::<usize>().prop_map(Step::CutOff).boxed()),
        (
            2,
            (instance(), prop::option::of(1..3u8))
                .prop_map(|(i, tag)| Step::Purge(i, tag))
                .boxed(),
        ),
        (24, advance.prop_map(Step::Advance).boxed()),
        (1, instance().prop_map(Step::Restart).boxed()),
        (
            4,
            (instance(), 0..RESOURCES)
                .prop_map(|(i, r)| Step::Evict(i, r))
                .boxed(),
        ),
    ];
    let more: [(u32, BoxedStrategy<Step>); 8] = [
        (on(faults.messages, 3), instance().prop_map(Step::Lose).boxed()),
        (
            on(faults.messages, 5),
            (instance(), any::<bool>())
                .prop_map(|(i, held)| Step::Hold(i, held))
                .boxed(),
        ),
        (
            on(faults.links, 10),
            (instance(), road)
                .prop_map(|(i, road)| Step::Road(i, road))
                .boxed(),
        ),
        (on(faults.store, 2), Just(Step::Empty).boxed()),
        (on(faults.store, 4), Just(Step::Replicate).boxed()),
        (on(faults.store, 3), Just(Step::FailOver).boxed()),
        (on(faults.store, 2), Just(Step::ForgetVersions).boxed()),
        (on(faults.store, 2), Just(Step::ForgetValues).boxed()),
    ];
    steps.extend(more.into_iter().filter(|(weight, _)| *weight > 0));
    prop::collection::vec(prop::strategy::Union::new_weighted(steps), 10..90)
}

//! What the filter promises: nothing is lost whatever happens in whatever order, and size and rate as documented.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::{Filter, MOST_GROWTH, Rebuild, Sizing};
use crate::types::known::KnownId;
use crate::types::time::Clock;

/// Ids that are as scattered as UUIDs of version 4.
fn id(number: u64) -> KnownId {
    KnownId::of_text(&number.to_le_bytes())
}

fn filter(expected_items: usize) -> Filter {
    Filter::new(Sizing {
        expected_items,
        false_positive_rate: 0.01,
    })
}

/// The part of ids from another range that seems to be contained.
fn measured_rate(filter: &Filter, probes: u64) -> f64 {
    let hits = (0..probes)
        .filter(|number| filter.contains(&id(u64::MAX - number)))
        .count();
    hits as f64 / probes as f64
}

fn now() -> tokio::time::Instant {
    Clock::System.now().monotonic
}

#[test]
fn a_million_ids_at_one_percent_take_at_most_1_3_megabytes() {
    let filter = filter(1_000_000);
    let rebuild = filter.begin_rebuild(0).expect("the first");
    (0..1_000_000).for_each(|number| rebuild.insert(id(number)));
    rebuild.finish(now());
    let stats = filter.stats(now());
    assert!(stats.bytes <= 1_300_000, "{stats:?}");
    assert_eq!(stats.generations, 1);
    let rate = measured_rate(&filter, 200_000);
    assert!((rate - 0.01).abs() <= 0.002, "{rate}");
    assert!(
        (stats.estimated_false_positive_rate - 0.01).abs() <= 0.001,
        "{stats:?}"
    );
    assert!(
        (0..1_000_000)
            .step_by(97)
            .all(|number| filter.contains(&id(number)))
    );
}

#[test]
fn a_filter_grows_within_its_promise_and_a_rebuild_brings_it_back() {
    let filter = filter(1_000);
    let one = {
        (0..1_000).for_each(|number| filter.insert(id(number)));
        filter.stats(now())
    };
    (1_000..14_000).for_each(|number| filter.insert(id(number)));
    let grown = filter.stats(now());
    assert_eq!(grown.generations, super::MOST_GENERATIONS);
    assert!(grown.bytes < one.bytes * MOST_GROWTH * 3 / 2, "{one:?} {grown:?}");
    let rate = measured_rate(&filter, 50_000);
    assert!(rate < 0.02, "{rate}");

    let rebuild = filter.begin_rebuild(0).expect("no other");
    (0..14_000).for_each(|number| rebuild.insert(id(number)));
    rebuild.finish(now());
    let stats = filter.stats(now());
    assert_eq!(stats.generations, 1);
    assert!(stats.bytes < grown.bytes, "{stats:?}");
    let rate = measured_rate(&filter, 50_000);
    assert!(rate < 0.012, "{rate}");
}

#[test]
fn beyond_its_bound_a_filter_says_yes_too_often_but_loses_nothing() {
    let filter = filter(100);
    let fill = || (0..20_000).for_each(|number| filter.insert(id(number)));
    fill();
    let full = filter.stats(now());
    assert!((0..20_000).all(|number| filter.contains(&id(number))));
    assert!(full.estimated_false_positive_rate > 0.1, "{full:?}");
    (20_000..40_000).for_each(|number| filter.insert(id(number)));
    assert_eq!(filter.stats(now()).bytes, full.bytes);

    let rebuild = filter.begin_rebuild(0).expect("no other");
    (0..20_000).for_each(|number| rebuild.insert(id(number)));
    rebuild.finish(now());
    assert!((0..20_000).all(|number| filter.contains(&id(number))));
    assert_eq!(filter.stats(now()).generations, 1, "another one would not help");
}

#[test]
fn what_was_deleted_falls_out_with_a_rebuild() {
    let filter = filter(1_000);
    (0..1_000).for_each(|number| filter.insert(id(number)));
    let rebuild = filter.begin_rebuild(0).expect("the first");
    (500..900).for_each(|number| rebuild.insert(id(number)));
    // One that the filter had already, and one that it had not.
    filter.insert(id(950));
    filter.insert(id(2_000));
    assert!(filter.contains(&id(1)), "until the rebuild takes its place");
    rebuild.finish(now());
    let kept = (500..900).chain([950, 2_000]);
    assert!(kept.into_iter().all(|number| filter.contains(&id(number))));
    let deleted = (0..500).filter(|number| filter.contains(&id(*number))).count();
    assert!(deleted < 25, "{deleted} of 500");
    assert!(filter.stats(now()).items <= 402);
}

#[test]
fn an_abandoned_rebuild_changes_nothing_and_another_may_begin() {
    let filter = filter(100);
    filter.insert(id(1));
    let rebuild = filter.begin_rebuild(0).expect("the first");
    assert!(filter.begin_rebuild(0).is_none());
    drop(rebuild);
    assert!(filter.contains(&id(1)));
    assert_eq!(filter.stats(now()).age, None);
    assert!(filter.begin_rebuild(0).is_some());
}

#[test]
fn the_age_is_counted_from_the_last_rebuild() {
    let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH);
    let filter = filter(100);
    filter
        .begin_rebuild(0)
        .expect("the first")
        .finish(clock.now().monotonic);
    time.advance(Duration::from_secs(40));
    assert_eq!(
        filter.stats(clock.now().monotonic).age,
        Some(Duration::from_secs(40))
    );
}

#[test]
fn any_sizing_makes_a_filter() {
    for (expected_items, false_positive_rate) in [(0, 0.0), (1, 1.0), (3, -1.0)] {
        let filter = Filter::new(Sizing {
            expected_items,
            false_positive_rate,
        });
        (0..100).for_each(|number| filter.insert(id(number)));
        assert!((0..100).all(|number| filter.contains(&id(number))));
    }
}

/// Creation as it is: first the row, then the insertion; a rebuild reads the rows after it has begun.
#[test]
fn what_other_threads_insert_while_rebuilds_take_place_is_never_missed() {
    const EACH: u64 = 4_000;
    let filter = filter(500);
    let rows = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let create = |first: u64| {
        for number in first..first + EACH {
            rows.lock().push(number);
            filter.insert(id(number));
            for known in [number, first + (number - first) / 2] {
                assert!(filter.contains(&id(known)), "{known}");
            }
        }
    };
    let rebuilds = thread::scope(|scope| {
        let rebuilds = scope.spawn(|| {
            let mut rebuilds = 0;
            while !done.load(Ordering::Acquire) {
                let rebuild = filter.begin_rebuild(0).expect("nobody else rebuilds");
                let rows = rows.lock().clone();
                rows.iter().for_each(|number| rebuild.insert(id(*number)));
                rebuild.finish(now());
                rebuilds += 1;
            }
            rebuilds
        });
        let writers = [0, EACH, 2 * EACH].map(|first| scope.spawn(move || create(first)));
        let joined = writers.map(|writer| writer.join());
        done.store(true, Ordering::Release);
        assert!(joined.iter().all(Result::is_ok));
        rebuilds.join().expect("no panic")
    });
    assert!(rebuilds > 1);
    assert!((0..3 * EACH).all(|number| filter.contains(&id(number))));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(std::ops::Range<u64>),
    Begin,
    Gather(std::ops::Range<u64>),
    Finish,
    Abandon,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0_u64..600, 1_u64..80).prop_map(|(first, count)| first..first + count);
    let step = prop_oneof![
        5 => range.clone().prop_map(Step::Insert),
        2 => Just(Step::Begin),
        4 => range.prop_map(Step::Gather),
        2 => Just(Step::Finish),
        1 => Just(Step::Abandon),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_that_exists_is_ever_missed(steps in steps(), expected_items in 1_usize..300) {
        let filter = filter(expected_items);
        let mut exist = HashSet::new();
        let mut rebuild: Option<(Rebuild, HashSet<u64>)> = None;
        for step in steps {
            match step {
                Step::Insert(numbers) => for number in numbers {
                    filter.insert(id(number));
                    exist.insert(number);
                    if let Some((_, gathered)) = &mut rebuild {
                        gathered.insert(number);
                    }
                },
                Step::Begin => match filter.begin_rebuild(0) {
                    Some(begun) => {
                        prop_assert!(rebuild.is_none());
                        rebuild = Some((begun, HashSet::new()));
                    }
                    None => prop_assert!(rebuild.is_some()),
                },
                Step::Gather(numbers) => if let Some((rebuild, gathered)) = &mut rebuild {
                    numbers.clone().for_each(|number| rebuild.insert(id(number)));
                    gathered.extend(numbers);
                },
                Step::Finish => if let Some((rebuild, gathered)) = rebuild.take() {
                    rebuild.finish(now());
                    exist = gathered;
                },
                Step::Abandon => rebuild = None,
            }
            for number in &exist {
                prop_assert!(filter.contains(&id(*number)), "{}", number);
            }
            let stats = filter.stats(now());
            prop_assert!(stats.items <= exist.len(), "{:?}", stats);
            prop_assert!(stats.generations <= super::MOST_GENERATIONS);
            prop_assert!((0.0..=1.0).contains(&stats.estimated_false_positive_rate));
        }
    }
}

//! Random histories of several instances that share a store: reads, slow fetches, writes that are answered or cut off,
//! purges, and whatever can happen to the store and to the messages between.
//!
//! The instances are real caches over a store of the test's own (`store`); time is moved by hand, and what the
//! promises are is kept apart from the code under test (`promises`).

mod instance;
mod promises;
mod steps;
mod store;
mod world;

use std::time::Duration;

use self::steps::{Faults, Road, Step, history};
use self::world::World;
use crate::types::histories::{Played, hold_in_every};

/// Histories of each kind, unless the environment says otherwise.
const HISTORIES: u32 = 400;

/// On it time passes only when a history says so.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

fn hold_in_every_history(kind: u8, faults: Faults) {
    hold_in_every(kind, HISTORIES, &history(faults), |steps, log| {
        runtime().block_on(async {
            let mut world = World::new(log);
            let result = world.play(steps).await;
            Played {
                result,
                answers: world.answers,
                log: world.log.unwrap_or_default(),
            }
        })
    });
}

#[test]
fn instances_agree_while_everything_works() {
    hold_in_every_history(10, Faults::default());
}

#[test]
fn instances_agree_when_messages_are_late_or_lost() {
    hold_in_every_history(
        11,
        Faults {
            messages: true,
            ..Faults::default()
        },
    );
}

#[test]
fn instances_agree_when_some_of_them_lose_the_store() {
    hold_in_every_history(
        12,
        Faults {
            links: true,
            ..Faults::default()
        },
    );
}

#[test]
fn instances_agree_when_the_store_forgets_or_fails_over() {
    hold_in_every_history(
        13,
        Faults {
            store: true,
            ..Faults::default()
        },
    );
}

#[test]
fn instances_agree_whatever_happens() {
    hold_in_every_history(
        14,
        Faults {
            messages: true,
            links: true,
            store: true,
        },
    );
}

#[test]
fn who_was_not_told_yet_learns_from_the_store_what_is_unsettled() {
    runtime().block_on(async {
        let mut world = World::new(false);
        // The write reaches the origin, and nobody knows what becomes of it; the message of that is late.
        let steps = [
            Step::Hold(1, true),
            Step::Write(0, 0b01),
            Step::CutOff(0),
            Step::Read(1, 0),
            Step::Finish(0),
        ];
        world.play_on(&steps).await.expect("no promise is broken");
        assert!(!world.last_status.contains("; stored"), "{}", world.last_status);
        world
            .play_on(&[Step::Advance(30_000), Step::Hold(1, false)])
            .await
            .expect("no promise is broken");
        world
            .play_on(&[Step::Advance(1500), Step::Read(1, 0), Step::Finish(0)])
            .await
            .expect("no promise is broken");
        assert!(world.last_status.contains("; stored"), "{}", world.last_status);
    });
}

fn play(steps: &[Step]) -> Result<(), String> {
    runtime().block_on(async { World::new(false).play(steps).await })
}

#[test]
fn who_did_not_hear_while_it_waited_for_another_instance_still_waits() {
    runtime().block_on(async {
        let mut world = World::new(false);
        let steps = [
            Step::Read(1, 0),
            Step::Read(0, 0),
            Step::Hold(0, true),
            Step::Advance(1300),
            Step::Hold(0, false),
            Step::Advance(100),
        ];
        world.play_on(&steps).await.expect("no promise is broken");
        assert_eq!(world.calls(), 1);
        world
            .play_on(&[Step::Finish(0), Step::Advance(50)])
            .await
            .expect("no promise is broken");
        assert_eq!((world.calls(), world.answers), (0, 2));
    });
}

#[test]
fn who_waits_for_another_instance_takes_what_its_neighbour_has_found_meanwhile() {
    runtime().block_on(async {
        let mut world = World::new(false);
        let well = "no promise is broken";
        let steps = [Step::Read(1, 0), Step::Read(0, 0), Step::Advance(200)];
        world.play_on(&steps).await.expect(well);
        // Ages are stored in whole milliseconds, so the same answer seems older or newer from moment to moment.
        world.pass(Duration::from_micros(900)).await.expect(well);
        world
            .play_on(&[Step::Finish(0), Step::Read(0, 0)])
            .await
            .expect(well);
        world.pass(Duration::from_micros(200)).await.expect(well);
        world.play_on(&[Step::Advance(100)]).await.expect(well);
        assert_eq!((world.calls(), world.answers), (0, 3));
    });
}

#[test]
fn who_is_deaf_does_not_join_a_fetch_from_before_the_window() {
    let steps = [
        Step::Read(0, 0),
        Step::Snapshot(0),
        Step::Road(0, Road::Cut),
        Step::Write(1, 0b01),
        Step::Answer(0),
        Step::Advance(5200),
        Step::Read(0, 0),
        Step::Finish(0),
    ];
    assert_eq!(play(&steps), Ok(()));
}

#[test]
fn who_hears_again_does_not_take_the_answer_of_a_fetch_that_it_joined_deaf() {
    let steps = [
        Step::Read(0, 0),
        Step::Snapshot(0),
        Step::Hold(0, true),
        Step::Write(1, 0b01),
        Step::Answer(1),
        Step::Advance(5400),
        Step::Read(0, 0),
        Step::Hold(0, false),
        Step::Answer(0),
        Step::Finish(0),
    ];
    assert_eq!(play(&steps), Ok(()));
}

#[test]
fn what_is_unsettled_is_told_again_to_a_store_that_has_forgotten_it() {
    // Who starts then cannot know it otherwise, and would store for all what the write is still to change.
    let steps = [
        Step::Write(0, 0b01),
        Step::CutOff(0),
        Step::Advance(250),
        Step::Empty,
        Step::Restart(1),
        Step::Advance(1100),
        Step::Read(1, 0),
        Step::Finish(0),
        Step::Advance(60),
        Step::Effect(0),
        Step::Advance(7000),
        Step::Read(0, 0),
    ];
    assert_eq!(play(&steps), Ok(()));
}

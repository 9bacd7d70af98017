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

use self::steps::{Faults, Step, history};
use self::world::World;
use super::histories::{Played, hold_in_every};

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

//! Random histories of several instances in front of one Dify: creations and deletions on all roads, requests, refreshes,
//! rebuilds, restarts, and a database and messages between instances that come and go.
//!
//! The guards are real; Dify, its database and what reads it are the test's own (`dify`, `database`). What is promised
//! is worked out from what happened, not from what the guards say (`promises`).

mod database;
mod dify;
mod instance;
mod promises;
mod steps;
mod world;

use self::steps::history;
use self::world::World;
use super::bloom::Sizing;
use crate::types::histories::{Played, hold_in_every};

fn hold_in_every_history(kind: u8, count: u32, sizing: Sizing, others: usize) {
    hold_in_every(kind, count, &history(), |steps, log| {
        // Time passes only when a history says so.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(sizing, others, log);
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
fn what_exists_is_never_refused_and_what_does_not_never_passes() {
    let sizing = Sizing {
        expected_items: 1024,
        false_positive_rate: 1e-6,
    };
    hold_in_every_history(20, 200, sizing, 0);
}

#[test]
fn what_exists_is_never_refused_though_filters_take_one_thing_for_another() {
    let sizing = Sizing {
        expected_items: 1024,
        false_positive_rate: 0.5,
    };
    hold_in_every_history(21, 100, sizing, 150);
}

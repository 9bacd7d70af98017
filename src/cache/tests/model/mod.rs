//! Random histories of reads, writes, purges, departures and time, step by step, on the real cache: the test
//! polls every future itself and lets the origin answer in pieces, so that the interleaving is the history's.
//!
//! How histories are played and cut down: `histories`.

mod checks;
mod origin;
mod steps;
mod world;

use self::steps::history;
use self::world::World;
use crate::config::CacheConfig;
use crate::config::cache::RefreshAheadConfig;
use crate::types::histories::{Played, hold_in_every};
use crate::types::units::{Ratio, Span};

/// Histories of each kind, unless the environment says otherwise.
const HISTORIES: u32 = 2000;

fn windows(while_revalidating: u64, on_error: u64) -> CacheConfig {
    let mut config = CacheConfig::default();
    config.classes.metadata.ttl = Span::secs(10);
    config.classes.metadata.stale_while_revalidate = Span::secs(while_revalidating);
    config.classes.metadata.stale_if_error = Span::secs(on_error);
    config.classes.not_found.ttl = Span::secs(3);
    config
}

fn hold_in_every_history(kind: u8, config: &CacheConfig) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    hold_in_every(kind, HISTORIES, &history(), |steps, log| {
        let mut world = World::new(config.clone(), log);
        let result = runtime.block_on(world.play(steps));
        Played {
            result,
            answers: world.answers,
            log: world.log.unwrap_or_default(),
        }
    });
}

#[test]
fn no_history_breaks_a_promise() {
    hold_in_every_history(0, &windows(5, 120));
}

#[test]
fn no_history_breaks_a_promise_when_hot_answers_are_fetched_ahead() {
    let mut config = windows(20, 5);
    config.refresh_ahead = Some(RefreshAheadConfig {
        last: Ratio(0.5),
        min_hits: 2,
    });
    hold_in_every_history(1, &config);
}

#[test]
fn no_history_breaks_a_promise_without_stale_answers() {
    let mut config = windows(0, 0);
    config.classes.metadata.ttl = Span::secs(60);
    hold_in_every_history(2, &config);
}

//! Failover under all that may happen: random histories of three instances, two clusters and Redis (`world`), and the
//! scripts of the real Redis beside the ledger that the histories use (`real_redis`).

mod real_redis;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use self::world::{Network, Step, World};
use super::record::Mode;
use crate::types::cluster::Cluster;
use crate::types::histories::{Played, hold_in_every};

/// Histories of each kind, unless the environment says otherwise.
const HISTORIES: u32 = 2_000;
const INSTANCES: usize = 3;

fn network() -> impl Strategy<Value = Network> {
    prop_oneof![
        4 => Just(Network::Works),
        2 => Just(Network::Down),
        1 => Just(Network::LosesReplies),
        2 => (50u64..2_000).prop_map(Network::Slow),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Auto), Just(Mode::Primary), Just(Mode::Standby)]
}

fn cluster() -> impl Strategy<Value = Cluster> {
    prop_oneof![2 => Just(Cluster::Primary), 1 => Just(Cluster::Standby)]
}

/// A history. Redis loses what it has only with `forgets`.
fn history(forgets: bool) -> impl Strategy<Value = Vec<Step>> {
    let instance = || 0..INSTANCES;
    let step = prop_oneof![
        8 => (1u64..80).prop_map(|ticks| Step::Wait(ticks * 50)),
        4 => (instance(), network()).prop_map(|(at, network)| Step::ToRedis(at, network)),
        2 => (instance(), cluster(), any::<bool>()).prop_map(|(at, cluster, works)| Step::ToCluster(at, cluster, works)),
        4 => (cluster(), 0u32..=4).prop_map(|(cluster, healthy)| Step::Healthy(cluster, healthy)),
        1 => (instance(), 0u64..4_500).prop_map(|(at, ms)| Step::Notices(at, ms)),
        1 => instance().prop_map(Step::Restart),
        1 => (instance(), any::<bool>()).prop_map(|(at, runs)| Step::Runs(at, runs)),
        1 => any::<bool>().prop_map(Step::Redis),
        1 => (instance(), mode()).prop_map(|(at, mode)| Step::Steer(at, mode)),
        u32::from(forgets) => (0usize..6).prop_map(Step::Forget),
    ];
    vec(step, 1..40)
}

fn hold(kind: u8, forgets: bool) {
    hold_in_every(kind, HISTORIES, &history(forgets), |steps, log| {
        let mut world = World::new(log);
        let result = world.play(steps);
        Played {
            result,
            answers: world.writes,
            log: world.log.unwrap_or_default(),
        }
    });
}

#[test]
fn no_epoch_has_writes_in_two_clusters_whatever_is_cut_off_or_dies() {
    hold(40, false);
}

#[test]
fn no_epoch_has_writes_in_two_clusters_even_when_redis_forgets() {
    hold(41, true);
}

#[test]
fn an_instance_that_hears_nothing_serves_reads_by_its_own_sight_and_sends_writes_nowhere_else() {
    let mut world = World::new(false);
    let steps = [
        Step::Wait(2_000),
        Step::ToRedis(0, Network::Down),
        Step::Wait(1_000),
        Step::Healthy(Cluster::Primary, 0),
        // The others shift meanwhile.
        Step::Wait(8_000),
    ];
    world.play_only(&steps).expect("all promises hold");
    assert_eq!(world.reads(0), Cluster::Standby);
    assert_eq!(world.writes(0), None);
    assert_eq!(world.writes(1), Some(Cluster::Standby));
    world
        .play_only(&[Step::Healthy(Cluster::Primary, 4), Step::Wait(1_000)])
        .expect("all promises hold");
    assert_eq!(world.reads(0), Cluster::Primary);
    assert_eq!(
        world.writes(0),
        Some(Cluster::Primary),
        "the last that it heard of has the writes"
    );
    world
        .play_only(&[Step::ToRedis(0, Network::Works), Step::Wait(1_000)])
        .expect("all promises hold");
    assert_eq!(world.writes(0), Some(Cluster::Standby));
}

#[test]
fn an_instance_that_hears_nothing_tries_no_write_where_nobody_is_left() {
    let mut world = World::new(false);
    let steps = [
        Step::Wait(2_000),
        Step::ToRedis(0, Network::Down),
        Step::Wait(4_000),
        Step::Healthy(Cluster::Primary, 1),
        Step::Wait(500),
    ];
    world.play_only(&steps).expect("all promises hold");
    assert_eq!(world.writes(0), Some(Cluster::Primary));
    world
        .play_only(&[Step::Healthy(Cluster::Primary, 0), Step::Wait(500)])
        .expect("all promises hold");
    assert_eq!((world.writes(0), world.reads(0)), (None, Cluster::Primary));
}

#[test]
fn a_cluster_that_one_instance_alone_cannot_reach_keeps_the_writes() {
    let mut world = World::new(false);
    let steps = [
        Step::Wait(1_000),
        Step::ToCluster(0, Cluster::Primary, false),
        Step::Wait(20_000),
    ];
    world.play_only(&steps).expect("all promises hold");
    for at in 0..INSTANCES {
        assert_eq!(world.writes(at), Some(Cluster::Primary));
    }
    // It waited for the others to see the same, and then no longer.
    assert!(!world.holds_writes(0) && world.holds_writes(1));
    let mut world = World::new(false);
    let steps = [&steps[..2], &[Step::Wait(3_000)]].concat();
    world.play_only(&steps).expect("all promises hold");
    assert!(world.holds_writes(0));
}

#[test]
fn what_one_instance_alone_has_seen_for_long_begins_to_count_when_the_others_are_gone() {
    let mut world = World::new(false);
    let steps = [
        Step::Wait(1_000),
        Step::ToCluster(0, Cluster::Primary, false),
        Step::Wait(20_000),
        Step::Runs(1, false),
        Step::Runs(2, false),
        Step::Wait(world::SETTINGS_AFTER_MS),
    ];
    world.play_only(&steps).expect("all promises hold");
    assert_eq!(world.writes(0), Some(Cluster::Primary));
    world.play_only(&[Step::Wait(2_000)]).expect("all promises hold");
    assert_eq!(world.writes(0), Some(Cluster::Standby));
}

#[test]
fn an_instance_that_has_never_heard_refuses_writes_and_serves_reads() {
    let mut world = World::new(false);
    let steps = [
        Step::Wait(1_000),
        Step::ToRedis(0, Network::Down),
        Step::Restart(0),
        Step::Wait(10_000),
    ];
    world.play_only(&steps).expect("all promises hold");
    assert_eq!((world.writes(0), world.reads(0)), (None, Cluster::Primary));
}

#[test]
fn a_shift_takes_no_longer_when_it_takes_long_to_know_that_a_cluster_hangs() {
    let mut world = World::new(false);
    let notices = (0..INSTANCES).map(|at| Step::Notices(at, 4_300 + 100 * at as u64));
    let mut steps: Vec<_> = notices.collect();
    steps.extend([
        Step::Wait(2_000),
        Step::Healthy(Cluster::Primary, 0),
        Step::Wait(world::SETTINGS_AFTER_MS + 1_000),
    ]);
    world.play_only(&steps).expect("all promises hold");
    for at in 0..INSTANCES {
        assert_eq!(world.writes(at), Some(Cluster::Standby));
    }
}

#[test]
fn a_shift_takes_a_second_longer_than_it_is_waited_for_even_if_the_holder_dies_with_the_cluster() {
    for holder_dies in [false, true] {
        let mut world = World::new(false);
        world.play_only(&[Step::Wait(1_000)]).expect("all promises hold");
        let holder = world.holder().expect("one decides");
        let mut steps = vec![Step::Healthy(Cluster::Primary, 0)];
        if holder_dies {
            steps.push(Step::Runs(holder, false));
        }
        steps.push(Step::Wait(world::SETTINGS_AFTER_MS + 1_000));
        world.play_only(&steps).expect("all promises hold");
        for at in (0..INSTANCES).filter(|at| !(holder_dies && *at == holder)) {
            assert_eq!(world.writes(at), Some(Cluster::Standby), "{holder_dies}");
        }
    }
}

//! The goals of balancing, kept by a shorter run of the simulator of `benches/balance_sim.rs`.

#[path = "../benches/simulated/mod.rs"]
mod simulated;

use dify_edge::config::upstreams::BalancePolicy;
use simulated::Scenario;
use simulated::scenarios::{Row, SLACK, all, level};

/// A row over some 30,000 requests.
fn quick(scenario: Scenario) -> Row {
    let seconds = 30_000.0 / scenario.rate;
    Row::of(scenario, seconds, 3)
}

#[test]
fn short_requests_hardly_notice_a_replica_that_is_slow_failing_gone_cold_or_far() {
    for scenario in all().into_iter().filter(|scenario| !scenario.equal) {
        let row = quick(scenario);
        assert!(row.to_oracle() <= 1.2, "{row:?}");
        assert!(row.to_round_robin() <= 0.65, "{row:?}");
        assert!(row.policies[2].errors <= row.policies[0].errors, "{row:?}");
    }
}

#[test]
fn balancing_by_health_is_as_good_as_turns_where_replicas_are_equal() {
    for scenario in all().into_iter().filter(|scenario| scenario.equal) {
        let row = quick(scenario);
        assert!(
            row.to_round_robin() <= 1.0 + SLACK,
            "{}: {row:?}",
            row.scenario.name
        );
    }
}

#[test]
fn uneven_loads_become_even_within_12_intervals_and_do_not_swing() {
    for seed in 0..5 {
        let levelling = level(BalancePolicy::WeightedHealth, 60, seed);
        assert_eq!(levelling.variance[0], 270.0);
        assert!((1..=12).contains(&levelling.settled()), "{levelling:?}");
        assert!(levelling.swings <= 2, "{levelling:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let run = || Row::of(all().remove(3), 60.0, 1).policies;
    assert_eq!(run(), run());
}

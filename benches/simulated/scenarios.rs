//! The scenarios that policies are compared in, the goals, and the one about uneven loads.

use dify_edge::config::upstreams::BalancePolicy;
use dify_edge::routing::balance::spread::{Spread, THRESHOLD};
use dify_edge::routing::balance::{self, Candidate};

use super::{Chance, Chooser, Nature, Result, Scenario};

/// By how much balancing by health may be worse than turns where replicas are equal: it draws, and follows signs that
/// mean nothing there.
pub(crate) const SLACK: f64 = 0.01;

/// The policies, in the order of the table's columns.
pub(crate) const POLICIES: [BalancePolicy; 3] = [
    BalancePolicy::RoundRobin,
    BalancePolicy::LeastLoaded,
    BalancePolicy::WeightedHealth,
];

/// All scenarios: four replicas of ten slots each.
pub(crate) fn all() -> Vec<Scenario> {
    let good = Nature::GOOD;
    let one = |odd: Nature| vec![good, good, good, odd];
    let short = |name, replicas| Scenario {
        name,
        equal: false,
        replicas,
        slots: 10,
        rate: 160.0,
        streams: 0.0,
    };
    let dify = |name, replicas| Scenario {
        // Streams of 32.5 s on average in five slots of ten.
        rate: 6.2,
        streams: 0.1,
        ..short(name, replicas)
    };
    let zone = |network| Nature { network, ..good };
    let slow = Nature { slow: 5.0, ..good };
    vec![
        Scenario {
            equal: true,
            ..short("equal, 20 % busy", one(good))
        },
        Scenario {
            equal: true,
            rate: 400.0,
            ..short("equal, 50 % busy", one(good))
        },
        Scenario {
            equal: true,
            rate: 600.0,
            ..short("equal, 75 % busy", one(good))
        },
        short("one 5 times slower", one(slow)),
        short("one failing 30 %", one(Nature { fails: 0.3, ..good })),
        short(
            "one black hole",
            one(Nature {
                black_hole: true,
                ..good
            }),
        ),
        short(
            "one cold for 40 s of 120 s",
            one(Nature {
                restarts: Some((120.0, 40.0)),
                ..good
            }),
        ),
        short(
            "two zones",
            vec![
                zone((0.002, 0.005)),
                zone((0.002, 0.005)),
                zone((0.08, 0.15)),
                zone((0.08, 0.15)),
            ],
        ),
        Scenario {
            equal: true,
            ..dify("Dify's load, equal", one(good))
        },
        dify("Dify's load, one 5 times slower", one(slow)),
    ]
}

/// The results of one scenario.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    /// As [`POLICIES`].
    pub(crate) policies: [Result; 3],
    pub(crate) oracle: Result,
}

impl Row {
    /// Runs `scenario` under every policy.
    pub(crate) fn of(scenario: Scenario, seconds: f64, seed: u64) -> Self {
        let run = |chooser| super::run(&scenario, chooser, seconds, seed);
        let policies = POLICIES.map(|policy| run(Chooser::Policy(policy)));
        let oracle = run(Chooser::Oracle);
        Self {
            policies,
            oracle,
            scenario,
        }
    }

    /// 99th percentile under `weighted_health` over that under `round_robin`.
    pub(crate) fn to_round_robin(&self) -> f64 {
        self.policies[2].p99 / self.policies[0].p99
    }

    /// 99th percentile under `weighted_health` over the oracle's.
    pub(crate) fn to_oracle(&self) -> f64 {
        self.policies[2].p99 / self.oracle.p99
    }
}

/// What became of loads that were uneven.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Levelling {
    /// The variance at the start and after each interval.
    pub(crate) variance: Vec<f64>,
    /// The most often that a replica's distance from the mean changed its sign; a distance of less than five
    /// percentage points, which is chance, has none.
    pub(crate) swings: usize,
}

impl Levelling {
    /// The first interval after which the variance is below the threshold, for good.
    pub(crate) fn settled(&self) -> usize {
        self.variance
            .iter()
            .rposition(|variance| *variance >= THRESHOLD)
            .map_or(0, |last| last + 1)
    }
}

/// Five replicas of a hundred slots with (85, 60, 90, 45, 70) % of them in use; requests of a minute on average
/// (exponential) come as fast as they go. An interval is ten seconds.
pub(crate) fn level(policy: BalancePolicy, intervals: usize, seed: u64) -> Levelling {
    const SLOTS: usize = 100;
    const HOLDS: f64 = 60.0;
    let mut chance = Chance(seed);
    let mut policy = balance::build(policy, seed);
    let mut loads = [85usize, 60, 90, 45, 70];
    let rate = loads.iter().sum::<usize>() as f64 / HOLDS;
    let mut signs = [0.0f64; 5];
    let mut changes = [0usize; 5];
    let spread =
        |loads: &[usize; 5]| Spread::of(loads.iter().map(|load| *load as f64 * 100.0 / SLOTS as f64));
    let mut variance = vec![spread(&loads).variance];
    let mut now = 0.0;
    for interval in 1..=intervals {
        while now < interval as f64 * 10.0 {
            // The next thing that happens: one comes, or one of those there goes.
            let there = loads.iter().sum::<usize>();
            let goes = there as f64 / HOLDS;
            now += chance.exponential() / (rate + goes);
            if chance.even() * (rate + goes) < rate {
                let candidates: Vec<_> = (0..5)
                    .filter(|place| loads[*place] < SLOTS)
                    .map(|replica| Candidate {
                        replica,
                        score: 1.0,
                        in_flight: loads[replica],
                        slots: SLOTS,
                    })
                    .collect();
                if let Some(place) = policy.choose(&candidates) {
                    loads[place] += 1;
                }
            } else {
                let mut which = (chance.even() * there as f64) as usize;
                for load in &mut loads {
                    if which < *load {
                        *load -= 1;
                        break;
                    }
                    which -= *load;
                }
            }
        }
        let Spread { mean, variance: v } = spread(&loads);
        variance.push(v);
        for (place, load) in loads.iter().enumerate() {
            let distance = *load as f64 * 100.0 / SLOTS as f64 - mean;
            if distance.abs() >= 5.0 {
                changes[place] += usize::from(signs[place] * distance < 0.0);
                signs[place] = distance;
            }
        }
    }
    Levelling {
        variance,
        swings: changes.into_iter().max().unwrap_or(0),
    }
}

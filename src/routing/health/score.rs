//! How well a replica serves, as one number in (0, 1]: what is known about it, and nothing that is not.
//!
//! Every input has a factor in [0, 1], and the score is their product, not less than [`LEAST`]. A product, because
//! one bad sign is enough: a replica that fails half of its requests is not made good by an idle processor. An input
//! that is missing has the factor 1, so that replicas are compared by what is known of all of them.
//!
//! A factor is `1 / (1 + (x / half)^power)`: near 1 far below `half`, one half there, and falling towards 0 beyond
//! it without ever jumping, so that a score that is measured anew does not swing. The power says how long an input
//! is harmless: 2 for what hurts in proportion, 4 for what has room until it is nearly used up (processor, slots), 6
//! for the time to the first byte, which varies by chance up to some times the usual.
//! The halves of processor and network (80 %, 15 ms) are set so that 45 % and 2.1 ms give 0.9, 78 % and 8.3 ms 0.4.
//! Those of the others are set by the simulator (`benches/balance_sim.rs`): the replica must get less than one
//! request in a hundred once its failures or its slowness would show in the 99th percentile.

use std::time::Duration;

use super::within;

/// The least score: whatever is known of a replica, it remains better than none.
pub const LEAST: f64 = 0.001;

/// Share of the processor that halves the score.
const CPU_HALF: f64 = 0.8;
/// Round trip that halves the score, in milliseconds.
const NETWORK_HALF: f64 = 15.0;
/// Share of failed requests that halves the score.
const ERRORS_HALF: f64 = 0.1;
/// Share of segments sent again that halves the score; below half a percent it is what networks do.
const RETRANSMITS_HALF: f64 = 0.05;
/// Share of the slots in use that halves the score: only one that is full.
const IN_FLIGHT_HALF: f64 = 1.0;
/// How many usual times more than the usual time to the first byte halve the score. Less than usual is no virtue:
/// it would reward failing quickly.
const SLOWNESS_HALF: f64 = 2.0;
/// The factor of a probe that failed.
const PROBE_FAILED: f64 = 0.05;
/// The factor of a replica in the moment in which it comes back.
const STARTING: f64 = 0.1;

/// What is known about a replica. Values out of range count as the nearest one in range, NaN as 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Inputs {
    /// Share of its processors in use, 0 to 1.
    pub cpu: Option<f64>,
    /// Round trip to it.
    pub network: Option<Duration>,
    /// Share of the TCP segments sent to it that had to be sent again, 0 to 1.
    pub retransmits: Option<f64>,
    /// Share of requests that failed lately, 0 to 1.
    pub errors: Option<f64>,
    /// Share of its slots in use, 0 to 1.
    pub in_flight: Option<f64>,
    /// Time to the first byte over what is usual for such requests; 1 is usual.
    pub slowness: Option<f64>,
    /// Whether the last probe was answered well.
    pub probe: Option<bool>,
    /// How far it has come since it appeared or came back: 0 at that moment, 1 when it counts in full.
    pub start: Option<f64>,
}

/// The factors of a score, each in [0, 1]; 1 for what is not known.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Parts {
    /// Of the processor's use.
    pub cpu: f64,
    /// Of the round trip.
    pub network: f64,
    /// Of segments sent again.
    pub retransmits: f64,
    /// Of failed requests.
    pub errors: f64,
    /// Of slots in use.
    pub in_flight: f64,
    /// Of the time to the first byte.
    pub slowness: f64,
    /// Of the last probe.
    pub probe: f64,
    /// Of the time since it came back.
    pub start: f64,
}

impl Parts {
    /// The factors of `inputs`.
    pub fn of(inputs: &Inputs) -> Self {
        let share = |input: Option<f64>| input.map(|x| x.min(1.0));
        let network = inputs.network.map(|time| time.as_secs_f64() * 1000.0);
        Self {
            cpu: factor(share(inputs.cpu), CPU_HALF, 4),
            network: factor(network, NETWORK_HALF, 2),
            retransmits: factor(share(inputs.retransmits), RETRANSMITS_HALF, 2),
            errors: factor(share(inputs.errors), ERRORS_HALF, 2),
            in_flight: factor(share(inputs.in_flight), IN_FLIGHT_HALF, 4),
            slowness: factor(inputs.slowness.map(|ratio| ratio - 1.0), SLOWNESS_HALF, 6),
            probe: if inputs.probe == Some(false) {
                PROBE_FAILED
            } else {
                1.0
            },
            start: inputs
                .start
                .map_or(1.0, |done| STARTING + (1.0 - STARTING) * within(done, 1.0)),
        }
    }

    /// The score.
    pub fn score(&self) -> f64 {
        let network = self.network * self.retransmits;
        let product =
            self.cpu * network * self.errors * self.in_flight * self.slowness * self.probe * self.start;
        product.max(LEAST)
    }
}

/// `max` takes NaN for 0.
fn factor(input: Option<f64>, half: f64, power: i32) -> f64 {
    input.map_or(1.0, |x| 1.0 / (1.0 + (x.max(0.0) / half).powi(power)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn score(inputs: Inputs) -> f64 {
        Parts::of(&inputs).score()
    }

    #[test]
    fn the_reference_table_is_met_with_everything_else_missing() {
        for (cpu, network, expected) in [(0.45, 2.1, 0.9), (0.78, 8.3, 0.4)] {
            let got = score(Inputs {
                cpu: Some(cpu),
                network: Some(Duration::from_secs_f64(network / 1000.0)),
                ..Inputs::default()
            });
            assert!((got - expected).abs() <= 0.02, "{cpu} {network}: {got}");
        }
        assert_eq!(score(Inputs::default()), 1.0);
    }

    #[test]
    fn each_input_alone_brings_a_score_down() {
        let none = Inputs::default();
        let bad = [
            Inputs {
                cpu: Some(1.0),
                ..none
            },
            Inputs {
                network: Some(Duration::from_millis(100)),
                ..none
            },
            Inputs {
                retransmits: Some(0.05),
                ..none
            },
            Inputs {
                errors: Some(0.3),
                ..none
            },
            Inputs {
                in_flight: Some(1.0),
                ..none
            },
            Inputs {
                slowness: Some(5.0),
                ..none
            },
            Inputs {
                probe: Some(false),
                ..none
            },
            Inputs {
                start: Some(0.0),
                ..none
            },
        ];
        for inputs in bad {
            assert!(score(inputs) <= 0.5, "{inputs:?}");
        }
        let usual = Inputs {
            retransmits: Some(0.005),
            ..none
        };
        assert!(score(usual) >= 0.99);
    }

    fn inputs() -> impl Strategy<Value = Inputs> {
        let some = || prop::option::of(prop_oneof![4 => 0.0..2.0f64, 1 => any::<f64>()]);
        let network = prop::option::of((0u64..10_000_000).prop_map(Duration::from_micros));
        (
            some(),
            network,
            some(),
            some(),
            some(),
            some(),
            any::<Option<bool>>(),
            some(),
        )
            .prop_map(
                |(cpu, network, retransmits, errors, in_flight, slowness, probe, start)| Inputs {
                    cpu,
                    network,
                    retransmits,
                    errors,
                    in_flight,
                    slowness,
                    probe,
                    start,
                },
            )
    }

    /// Sets one input so that a greater value is worse.
    type Set<'a> = &'a dyn Fn(&mut Inputs, f64);

    proptest! {
        #[test]
        fn a_score_is_bounded_whatever_goes_in(inputs in inputs()) {
            let parts = Parts::of(&inputs);
            let score = parts.score();
            prop_assert!((LEAST..=1.0).contains(&score), "{}", score);
        }

        #[test]
        fn a_worse_input_never_makes_a_better_score(inputs in inputs(), a in 0.0..20.0f64, b in 0.0..20.0f64) {
            let (low, high) = (a.min(b), a.max(b));
            let at = |set: Set, x: f64| {
                let mut inputs = inputs;
                set(&mut inputs, x);
                score(inputs)
            };
            let worse: [Set; 8] = [
                &|i, x| i.cpu = Some(x / 10.0),
                &|i, x| i.network = Some(Duration::from_secs_f64(x / 100.0)),
                &|i, x| i.retransmits = Some(x / 10.0),
                &|i, x| i.errors = Some(x / 10.0),
                &|i, x| i.in_flight = Some(x / 10.0),
                &|i, x| i.slowness = Some(x),
                &|i, x| i.probe = Some(x < 10.0),
                &|i, x| i.start = Some(1.0 - x / 20.0),
            ];
            for set in worse {
                prop_assert!(at(set, low) >= at(set, high));
            }
            // Nor does a missing one count for less than the worst that could be known.
            for set in worse {
                let mut missing = inputs;
                missing.cpu = None;
                let mut known = missing;
                set(&mut known, 20.0);
                let mut best = missing;
                set(&mut best, 0.0);
                prop_assert!(score(best) >= score(known));
            }
        }
    }
}

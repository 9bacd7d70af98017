//! Whether a replica is healthy: a state machine without clock or I/O.
//!
//! Failures in a row, of probes or of requests, put a replica out; only good probes in a row bring it back,
//! because while it is out it may get no requests to prove itself with. How well a replica serves that is in,
//! is `score`'s matter, over what `signals` gathers, `resources` among it: what is measured, rather than learnt.

pub mod ewma;
pub mod orca;
pub mod resources;
pub mod score;
pub mod scrape;
pub mod signals;
pub(super) mod silence;
pub mod tcp;

/// `x` from 0 to `most`; NaN is 0.
pub(super) fn within(x: f64, most: f64) -> f64 {
    if x > 0.0 { x.min(most) } else { 0.0 }
}

/// What was learnt about a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A probe was answered well.
    ProbeOk,
    /// A probe was not answered, or not well.
    ProbeFailed,
    /// A request got the head of an answer.
    RequestOk,
    /// A request found no connection, lost it before an answer, or waited for one in vain.
    RequestFailed,
}

/// The health of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    healthy: bool,
    failures: u32,
    successes: u32,
    unhealthy_after: u32,
    healthy_after: u32,
}

impl Health {
    /// A replica that is taken for healthy until the contrary is known. Thresholds count from 1.
    pub(super) fn new(unhealthy_after: u32, healthy_after: u32) -> Self {
        Self {
            healthy: true,
            failures: 0,
            successes: 0,
            unhealthy_after: unhealthy_after.max(1),
            healthy_after: healthy_after.max(1),
        }
    }

    /// Takes `event` into account. True when the replica went out or came back by it.
    pub(super) fn on(&mut self, event: Event) -> bool {
        let before = self.healthy;
        match event {
            Event::ProbeFailed | Event::RequestFailed => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.healthy &= self.failures < self.unhealthy_after;
            }
            Event::RequestOk if self.healthy => self.failures = 0,
            Event::RequestOk => {}
            Event::ProbeOk if self.healthy => self.failures = 0,
            Event::ProbeOk => {
                self.successes += 1;
                if self.successes >= self.healthy_after {
                    *self = Self::new(self.unhealthy_after, self.healthy_after);
                }
            }
        }
        self.healthy != before
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Failures since the last success.
    pub(super) fn consecutive_failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::Event::*;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_replica_goes_out_after_failures_in_a_row_and_comes_back_by_good_probes() {
        let table: &[(&[Event], bool)] = &[
            (&[], true),
            (&[ProbeFailed, RequestFailed], true),
            (&[ProbeFailed, RequestFailed, ProbeFailed], false),
            (&[RequestFailed, RequestFailed, RequestOk, RequestFailed], true),
            (&[RequestFailed, RequestFailed, ProbeOk, RequestFailed], true),
            (&[ProbeFailed, ProbeFailed, ProbeFailed, ProbeOk], false),
            (&[ProbeFailed, ProbeFailed, ProbeFailed, ProbeOk, ProbeOk], true),
            (
                &[
                    ProbeFailed,
                    ProbeFailed,
                    ProbeFailed,
                    ProbeOk,
                    ProbeFailed,
                    ProbeOk,
                ],
                false,
            ),
            (
                &[ProbeFailed, ProbeFailed, ProbeFailed, RequestOk, RequestOk],
                false,
            ),
            (
                &[
                    ProbeFailed,
                    ProbeFailed,
                    ProbeFailed,
                    ProbeOk,
                    RequestFailed,
                    ProbeOk,
                ],
                false,
            ),
            (
                &[
                    ProbeFailed,
                    ProbeFailed,
                    ProbeFailed,
                    ProbeOk,
                    ProbeOk,
                    ProbeFailed,
                    ProbeFailed,
                ],
                true,
            ),
        ];
        for (events, healthy) in table {
            let mut health = Health::new(3, 2);
            for event in *events {
                health.on(*event);
            }
            assert_eq!(health.is_healthy(), *healthy, "{events:?}");
        }
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(
            prop::sample::select(vec![ProbeOk, ProbeFailed, RequestOk, RequestFailed]),
            0..64,
        )
    }

    proptest! {
        #[test]
        fn enough_failures_always_put_it_out_and_enough_probes_bring_it_back(
            events in events(), out in 1u32..6, back in 1u32..6,
        ) {
            let mut health = Health::new(out, back);
            for event in events {
                let before = health.is_healthy();
                let changed = health.on(event);
                prop_assert_eq!(changed, before != health.is_healthy());
                if changed {
                    // Only a failure puts it out, only a good probe brings it back.
                    prop_assert_eq!(event == ProbeOk, health.is_healthy());
                    prop_assert!(event != RequestOk);
                }
            }
            for _ in 0..out {
                health.on(RequestFailed);
            }
            prop_assert!(!health.is_healthy());
            for n in 0..back {
                prop_assert!(!health.is_healthy(), "back after {} probes", n);
                health.on(ProbeOk);
            }
            prop_assert!(health.is_healthy());
            prop_assert_eq!(health.consecutive_failures(), 0);
        }
    }
}

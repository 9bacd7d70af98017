//! Whether a replica that fails too often is asked at all: a state machine without clock or I/O.
//!
//! ```text
//!              volume reached and failures at or above the threshold
//!              (both within the window)
//!    +--------+ ------------------------------------------------> +--------+
//! -> | closed |                                                   |  open  | nobody is let in
//!    +--------+                          a trial fails:           +--------+
//!        ^                               twice the sleep,           |    ^
//!        |                               up to 5 minutes            |    |
//!        |      enough trials in a row   +-----------+  sleep over  |    |
//!        +------ succeed: the sleep is   |           | <------------+    |
//!                what it was at first -- | half open | ------------------+
//!                                        +-----------+ few at once, as trials
//! ```
//!
//! Each change begins a new generation, and a result counts only in the generation in which its request was let
//! in: what was asked before a replica was found to fail says nothing about whether it has recovered. A request
//! that ends without a verdict (its client left) counts for nothing and gives its place back.
//!
//! Beside it stands `health`, fed by probes and by failures in a row: it finds a replica that is dead within
//! seconds, and takes it back as soon as probes are answered. The breaker finds the replica that answers its probes
//! and fails every second request, which no count of failures in a row does, and takes it back only when requests
//! succeed. A replica serves while both let it; probes are not counted here, and no trial replaces one. When no
//! replica is healthy those that may be well are tried all the same, but open means open.

mod window;

use std::time::Duration;

use tokio::time::Instant;

use self::window::Window;
use crate::config::BreakerConfig;

/// However often trials fail, the sleep becomes no longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(300);

/// Whether requests are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// All are.
    Closed,
    /// A few are, as trials.
    HalfOpen,
    /// None is.
    Open,
}

impl BreakerState {
    /// Every state, in declaration order, which is that of the metric's values.
    pub(super) const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The word used in metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What became of a request that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The replica answered, to the last byte.
    Success,
    /// The replica did not, or said that it cannot.
    Failure,
    /// Nothing was learnt of the replica.
    Unknown,
}

/// The leave that one request was given. It is to be settled once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ticket {
    generation: u64,
}

/// A change of state, as the log tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) to: BreakerState,
    /// Failures that led to it, and the results among which they were.
    pub(super) failures: u32,
    pub(super) results: u32,
    /// How long nobody is let in; zero unless it opened.
    pub(super) sleep: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        in_flight: u32,
        /// Trials in a row that succeeded.
        successes: u32,
        /// When the last trial began.
        last: Instant,
    },
}

/// The breaker of one replica.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures in a million results at which it opens.
    threshold: u64,
    volume: u32,
    trials: u32,
    close_after: u32,
    first_sleep: Duration,
    /// The sleep that begins, or began, with the next or last opening.
    sleep: Duration,
    state: State,
    generation: u64,
    window: Window,
}

impl Breaker {
    /// Closed, with nothing learnt.
    pub(super) fn new(config: &BreakerConfig) -> Self {
        let first_sleep = config.sleep_window.0;
        Self {
            threshold: (config.failure_threshold.0 * 1e6).round() as u64,
            volume: config.request_volume.max(1),
            trials: config.half_open_requests.max(1),
            close_after: config.close_after.max(1),
            first_sleep,
            sleep: first_sleep,
            state: State::Closed,
            generation: 0,
            window: Window::new(config.window.0),
        }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            State::Open { .. } => BreakerState::Open,
        }
    }

    /// Time until it is half open; zero unless it is open.
    pub(super) fn half_open_in(&self, now: Instant) -> Duration {
        match self.state {
            State::Open { until } => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Wakes it when its sleep is over.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Open { until } if until <= now => {
                let half_open = State::HalfOpen {
                    in_flight: 0,
                    successes: 0,
                    last: now,
                };
                Some(self.change_to(half_open, 0, 0))
            }
            _ => None,
        }
    }

    /// Whether [`enter`](Self::enter) would let a request in, once [`advance`](Self::advance) was called.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } => until <= now,
            // A trial may be a stream of many minutes, or hang. It holds up others no longer than a sleep does.
            State::HalfOpen { in_flight, last, .. } => {
                in_flight < self.trials || now.saturating_duration_since(last) >= self.first_sleep
            }
        }
    }

    /// Lets a request in, or does not.
    pub(super) fn enter(&mut self, now: Instant) -> Option<Ticket> {
        if !self.admits(now) {
            return None;
        }
        match &mut self.state {
            State::Closed => {}
            State::Open { .. } => return None,
            State::HalfOpen { in_flight, last, .. } => {
                *in_flight += 1;
                *last = now;
            }
        }
        Some(Ticket {
            generation: self.generation,
        })
    }

    /// Takes into account what became of the request with `ticket`.
    pub(super) fn settle(&mut self, ticket: Ticket, verdict: Verdict, now: Instant) -> Option<Change> {
        if ticket.generation != self.generation {
            return None;
        }
        match &mut self.state {
            State::Closed => {
                if verdict == Verdict::Unknown {
                    return None;
                }
                let (failures, results) = self.window.add(verdict == Verdict::Failure, now);
                let fails = u64::from(failures) * 1_000_000 >= self.threshold * u64::from(results);
                (results >= self.volume && fails).then(|| self.open(self.first_sleep, failures, results, now))
            }
            State::HalfOpen {
                in_flight, successes, ..
            } => {
                *in_flight = in_flight.saturating_sub(1);
                match verdict {
                    Verdict::Unknown => None,
                    Verdict::Failure => {
                        let results = *successes + 1;
                        let longest = LONGEST_SLEEP.max(self.first_sleep);
                        Some(self.open((self.sleep * 2).min(longest), 1, results, now))
                    }
                    Verdict::Success => {
                        *successes += 1;
                        let results = *successes;
                        (results >= self.close_after).then(|| self.change_to(State::Closed, 0, results))
                    }
                }
            }
            // A ticket of this generation was never given.
            State::Open { .. } => None,
        }
    }

    fn open(&mut self, sleep: Duration, failures: u32, results: u32, now: Instant) -> Change {
        self.sleep = sleep;
        self.change_to(State::Open { until: now + sleep }, failures, results)
    }

    fn change_to(&mut self, state: State, failures: u32, results: u32) -> Change {
        self.state = state;
        self.generation += 1;
        self.window.clear();
        let to = self.state();
        let sleep = match to {
            BreakerState::Open => self.sleep,
            _ => Duration::ZERO,
        };
        Change {
            to,
            failures,
            results,
            sleep,
        }
    }
}

#[cfg(test)]
mod tests;

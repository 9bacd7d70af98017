//! Time as a value that is handed in: the one place that reads a clock.
//!
//! Stages hold a [`Clock`] and decide over [`Now`]; a test moves a manual clock instead of sleeping.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// One reading of both clocks, taken at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: for ages, deadlines and intervals. Follows tokio's paused time.
    pub monotonic: Instant,
    /// Wall clock: for comparing with dates that others wrote (`Date`, `Expires`, signed URLs).
    pub wall: SystemTime,
}

impl Now {
    /// Whole seconds since the Unix epoch; 0 before it.
    pub fn unix_seconds(&self) -> u64 {
        self.wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs())
    }
}

/// Where stages read the time from.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    System,
    /// A clock that a test moves by hand.
    Manual(Arc<ManualTime>),
}

/// The state of a [`Clock::Manual`].
#[derive(Debug)]
pub struct ManualTime(Mutex<Now>);

impl Clock {
    /// A clock that stands still at `wall` until [`ManualTime::advance`] moves it.
    #[allow(clippy::disallowed_methods, reason = "the starting point of a manual clock")]
    pub fn manual(wall: SystemTime) -> (Self, Arc<ManualTime>) {
        let time = Arc::new(ManualTime(Mutex::new(Now {
            monotonic: Instant::now(),
            wall,
        })));
        (Self::Manual(time.clone()), time)
    }

    /// Reads both clocks.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clocks")]
    pub fn now(&self) -> Now {
        match self {
            Self::System => Now {
                monotonic: Instant::now(),
                wall: SystemTime::now(),
            },
            Self::Manual(time) => *time.0.lock(),
        }
    }
}

impl ManualTime {
    /// Moves both clocks forward by `by`.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock();
        now.monotonic += by;
        now.wall += by;
    }
}

//! What is measured of one replica, rather than learnt from how it answers: its processors and its network.
//!
//! Each source tells from time to time, and what it told is forgotten when it has been silent for too long: a
//! measure that is old says nothing. No clock and no lock of its own.

use std::time::Duration;

use tokio::time::Instant;

/// A report in an answer counts for this long.
const REPORT_COUNTS: Duration = Duration::from_secs(30);

/// What was measured of one replica lately.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    reported: Option<Measured<f64>>,
}

/// Something that counts for a while.
#[derive(Debug, Clone, Copy)]
struct Measured<T> {
    value: T,
    until: Instant,
}

impl<T: Copy> Measured<T> {
    fn at(&self, now: Instant) -> Option<T> {
        (now < self.until).then_some(self.value)
    }
}

impl Resources {
    /// The replica said in an answer that this share of it is in use.
    pub fn reported(&mut self, share: f64, now: Instant) {
        self.reported = Some(Measured {
            value: share,
            until: now + REPORT_COUNTS,
        });
    }

    /// Share of the processors in use.
    pub fn cpu(&self, now: Instant) -> Option<f64> {
        self.reported?.at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;

    #[test]
    fn a_report_counts_until_the_next_and_not_for_ever() {
        let start = Clock::System.now().monotonic;
        let mut resources = Resources::default();
        assert_eq!(resources.cpu(start), None);
        resources.reported(0.5, start);
        resources.reported(0.9, start + Duration::from_secs(1));
        assert_eq!(resources.cpu(start + REPORT_COUNTS), Some(0.9));
        assert_eq!(
            resources.cpu(start + Duration::from_secs(1) + REPORT_COUNTS),
            None
        );
    }
}

//! What is measured of one replica, rather than learnt from how it answers: its processors and its network.
//!
//! Each source tells from time to time, and what it told is forgotten when it has been silent for too long: a
//! measure that is old says nothing. No clock and no lock of its own.

use std::time::Duration;

use tokio::time::Instant;

use super::signals::Share;
use super::tcp::Traffic;

/// A report in an answer counts for this long.
const REPORT_COUNTS: Duration = Duration::from_secs(30);
/// So many segments that arrived are taken for granted, so that one that was lost is not all that counts.
const GRANTED: f64 = 50.0;

/// What was measured of one replica lately.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    reported: Option<Measured<f64>>,
    scraped_cpu: Option<Measured<f64>>,
    scraped_network: Option<Measured<f64>>,
    round_trip: Option<Measured<f64>>,
    retransmits: Share,
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

    /// A scrape showed the share of processors in use and the round trip, in seconds. They count up to `until`, what is
    /// `None` changes nothing.
    pub fn scraped(&mut self, cpu: Option<f64>, network: Option<f64>, until: Instant) {
        let measured = |value| Measured { value, until };
        self.scraped_cpu = cpu.map(measured).or(self.scraped_cpu);
        self.scraped_network = network.map(measured).or(self.scraped_network);
    }

    /// The kernel told of the connections to it. The round trip counts up to `until`.
    pub fn seen(&mut self, traffic: &Traffic, now: Instant, until: Instant) {
        if let Some(value) = traffic.round_trip() {
            self.round_trip = Some(Measured { value, until });
        }
        self.retransmits.count(traffic.again, traffic.sent, now);
    }

    /// Share of the processors in use: what the operator has measured, else what the replica says.
    pub fn cpu(&self, now: Instant) -> Option<f64> {
        let at = |source: Option<Measured<f64>>| source?.at(now);
        at(self.scraped_cpu).or_else(|| at(self.reported))
    }

    /// The round trip: what the operator has measured, else that of the connections.
    pub fn network(&self, now: Instant) -> Option<Duration> {
        let at = |source: Option<Measured<f64>>| source?.at(now);
        let seconds = at(self.scraped_network).or_else(|| at(self.round_trip))?;
        Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    }

    /// Share of the segments sent to it that had to be sent again.
    pub fn retransmits(&self, now: Instant) -> Option<f64> {
        self.retransmits.among(GRANTED, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::health::tcp::{Connection, Counts};
    use crate::types::time::Clock;

    #[test]
    fn a_scrape_goes_before_a_report_until_it_is_forgotten() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut resources = Resources::default();
        resources.reported(0.5, start);
        resources.scraped(Some(0.9), Some(0.087), at(15));
        resources.scraped(None, Some(-1.0), at(20));
        assert_eq!(resources.cpu(at(14)), Some(0.9));
        assert_eq!(resources.network(at(19)), Some(Duration::ZERO));
        assert_eq!(
            (resources.cpu(at(15)), resources.network(at(20))),
            (Some(0.5), None)
        );
        resources.scraped(None, Some(f64::MAX), at(20));
        assert_eq!(resources.network(at(19)), Some(Duration::MAX));
    }

    #[test]
    fn connections_tell_the_round_trip_unless_it_is_scraped_and_what_was_lost() {
        let start = Clock::System.now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut resources = Resources::default();
        assert_eq!(
            (resources.network(start), resources.retransmits(start)),
            (None, None)
        );
        let mut counts = Counts::default();
        let mut connection = Connection {
            cookie: 1,
            peer: ([10, 0, 0, 1], 5001).into(),
            round_trip: Some(Duration::from_millis(87)),
            sent: 0,
            again: 0,
        };
        for (time, sent, again) in [(0, 0, 0), (5, 1, 1), (10, 950, 106)] {
            (connection.sent, connection.again) = (sent, again);
            let traffic = counts.look(&[connection])[&connection.peer];
            resources.seen(&traffic, at(time), at(time + 15));
            let share = resources.retransmits(at(time)).unwrap();
            // One alone may be chance.
            let expected = if time == 10 { 0.09..0.12 } else { 0.0..0.021 };
            assert!(expected.contains(&share), "{share}");
        }
        assert_eq!(resources.network(at(24)), Some(Duration::from_millis(87)));
        resources.scraped(None, Some(0.002), at(20));
        assert_eq!(resources.network(at(19)), Some(Duration::from_millis(2)));
        assert_eq!(resources.network(at(25)), None);
        assert!(resources.retransmits(at(210)).unwrap() < 0.005);
    }

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

//! How long which cluster has been healthy enough, and what follows from that. Pure.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::record::{Cause, Mode};
use crate::config::{FailbackConfig, FailoverConfig};
use crate::types::cluster::Cluster;

/// The share of its capacity that is healthy, of one, for each cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sight {
    /// Of the primary cluster.
    pub primary: f64,
    /// Of the standby cluster.
    pub standby: f64,
}

impl Sight {
    /// The share of `cluster`.
    pub fn of(self, cluster: Cluster) -> f64 {
        match cluster {
            Cluster::Primary => self.primary,
            Cluster::Standby => self.standby,
        }
    }

    /// The mean of several; that of none is nothing.
    pub(super) fn mean(sights: impl ExactSizeIterator<Item = Self>) -> Option<Self> {
        let count = sights.len() as f64;
        let sum = sights.reduce(|one, other| Self {
            primary: one.primary + other.primary,
            standby: one.standby + other.standby,
        })?;
        Some(Self {
            primary: sum.primary / count,
            standby: sum.standby / count,
        })
    }
}

/// What is configured.
#[derive(Debug, Clone, Copy)]
pub(in crate::routing) struct Settings {
    pub(super) min_healthy: f64,
    pub(super) after: Duration,
    pub(super) back_after: Duration,
    pub(super) lease_ttl: Duration,
}

impl Settings {
    pub(in crate::routing) fn new(failover: &FailoverConfig, failback: &FailbackConfig) -> Self {
        Self {
            min_healthy: failover.min_healthy.0,
            after: failover.after.0,
            back_after: failback.after.0,
            lease_ttl: failover.lease_ttl.0,
        }
    }
}

/// What was seen before a longer time without a look says nothing of how long it has lasted.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// What has been seen of the clusters.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    settings: Settings,
    last: Option<(Sight, Instant)>,
    /// Since when less than enough of a cluster is healthy, without a break.
    low: [Option<Instant>; 2],
    /// Since when enough of it is.
    well: [Option<Instant>; 2],
}

impl Watch {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            last: None,
            low: [None; 2],
            well: [None; 2],
        }
    }

    /// Takes a look at the clusters into account.
    pub(super) fn see(&mut self, sight: Sight, now: Instant) {
        let is_gap = |(_, at): (Sight, Instant)| now.saturating_duration_since(at) > LONGEST_GAP;
        if self.last.replace((sight, now)).is_some_and(is_gap) {
            // Nobody knows what was meanwhile.
            (self.low, self.well) = ([None; 2], [None; 2]);
        }
        for cluster in Cluster::ALL {
            let (low, well) = (&mut self.low[cluster as usize], &mut self.well[cluster as usize]);
            if sight.of(cluster) < self.settings.min_healthy {
                (*low, *well) = (low.or(Some(now)), None);
            } else {
                (*low, *well) = (None, well.or(Some(now)));
            }
        }
    }

    pub(super) fn last(&self) -> Option<Sight> {
        self.last.map(|(sight, _)| sight)
    }

    /// Why the writes should go to the cluster that is not `active`, if they should.
    pub(super) fn due(&self, active: Cluster, mode: Mode, now: Instant) -> Option<Cause> {
        if let Some(wanted) = mode.cluster() {
            return (wanted != active).then_some(Cause::Operator);
        }
        let sight = self.last()?;
        let lasts = |since: Option<Instant>, time| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= time)
        };
        let is_better = sight.of(active.other()) > sight.of(active);
        if is_better && lasts(self.low[active as usize], self.settings.after) {
            return Some(Cause::Unhealthy);
        }
        let is_back = active == Cluster::Standby
            && lasts(self.well[Cluster::Primary as usize], self.settings.back_after);
        is_back.then_some(Cause::Recovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Clock;

    const SETTINGS: Settings = Settings {
        min_healthy: 0.5,
        after: Duration::from_secs(5),
        back_after: Duration::from_secs(60),
        lease_ttl: Duration::from_secs(3),
    };

    /// Looks every half second at shares of (primary, standby), which change at these seconds; what is due at the last one.
    fn due(active: Cluster, mode: Mode, looks: &[(u64, f64, f64)]) -> Option<Cause> {
        let start = Clock::System.now().monotonic;
        let mut watch = Watch::new(SETTINGS);
        let last = looks.last().map_or(0, |(second, ..)| *second);
        let at = |half: u64| start + Duration::from_millis(500 * half);
        for half in 0..=2 * last {
            let shares = looks.iter().rev().find(|(second, ..)| 2 * second <= half);
            let (_, primary, standby) = *shares.expect("they begin at 0");
            watch.see(Sight { primary, standby }, at(half));
        }
        watch.due(active, mode, at(2 * last))
    }

    #[test]
    fn a_cluster_that_is_low_for_long_enough_gives_up_the_writes_if_the_other_is_better() {
        use Cluster::{Primary, Standby};
        let low = |until, standby| [(0, 0.49, standby), (until, 0.49, standby)];
        assert_eq!(due(Primary, Mode::Auto, &low(5, 1.0)), Some(Cause::Unhealthy));
        assert_eq!(due(Primary, Mode::Auto, &low(4, 1.0)), None);
        assert_eq!(due(Primary, Mode::Auto, &low(5, 0.49)), None);
        assert_eq!(due(Primary, Mode::Auto, &[(0, 0.5, 1.0), (9, 0.5, 1.0)]), None);
        let broken = [(0, 0.0, 1.0), (3, 0.5, 1.0), (6, 0.0, 1.0), (10, 0.0, 1.0)];
        assert_eq!(due(Primary, Mode::Auto, &broken), None);
        let standby = [(0, 0.3, 0.1), (5, 0.3, 0.1)];
        assert_eq!(due(Standby, Mode::Auto, &standby), Some(Cause::Unhealthy));
    }

    #[test]
    fn what_was_not_looked_at_for_a_while_begins_anew() {
        let start = Clock::System.now().monotonic;
        let mut watch = Watch::new(SETTINGS);
        let dead = Sight {
            primary: 0.0,
            standby: 1.0,
        };
        let mut due_at = |ms| {
            let now = start + Duration::from_millis(ms);
            watch.see(dead, now);
            watch.due(Cluster::Primary, Mode::Auto, now)
        };
        assert!((0..5).all(|second| due_at(1_000 * second).is_none()));
        assert_eq!(due_at(5_100), None);
        assert!((6..10).all(|second| due_at(1_000 * second + 100).is_none()));
        assert_eq!(due_at(10_100), Some(Cause::Unhealthy));
    }

    #[test]
    fn the_primary_has_the_writes_back_once_it_has_been_well_for_long_enough() {
        let well = |until| [(0, 0.0, 1.0), (1, 0.6, 1.0), (until, 0.9, 1.0)];
        assert_eq!(
            due(Cluster::Standby, Mode::Auto, &well(61)),
            Some(Cause::Recovered)
        );
        assert_eq!(due(Cluster::Standby, Mode::Auto, &well(60)), None);
        let relapsed = [(0, 0.9, 1.0), (30, 0.2, 1.0), (31, 0.9, 1.0), (80, 0.9, 1.0)];
        assert_eq!(due(Cluster::Standby, Mode::Auto, &relapsed), None);
        // The standby does not wait to be the better one.
        assert_eq!(due(Cluster::Primary, Mode::Auto, &well(61)), None);
    }

    #[test]
    fn what_the_operator_wants_holds_whatever_is_seen() {
        let dead = [(0, 0.0, 1.0), (100, 0.0, 1.0)];
        assert_eq!(due(Cluster::Primary, Mode::Primary, &dead), None);
        assert_eq!(due(Cluster::Standby, Mode::Primary, &dead), Some(Cause::Operator));
        assert_eq!(due(Cluster::Standby, Mode::Standby, &[(0, 1.0, 0.0)]), None);
    }
}

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
    fn mean(sights: impl ExactSizeIterator<Item = Self>) -> Option<Self> {
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

/// What an instance tells the others of the clusters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Look {
    pub(super) sight: Sight,
    /// For how long there has been less than enough of each cluster, in milliseconds, if there is.
    pub(super) low_ms: [Option<u64>; 2],
}

/// What several see together: the mean, and of those who see too little of a cluster the one who has for the shortest
/// time.
pub(super) fn together(looks: &[Look]) -> Option<Look> {
    let shortest = |cluster| {
        looks
            .iter()
            .filter_map(|look| look.low_ms[cluster as usize])
            .min()
    };
    Some(Look {
        sight: Sight::mean(looks.iter().map(|look| look.sight))?,
        low_ms: Cluster::ALL.map(shortest),
    })
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
    /// Nobody looked for a while before this.
    begun: Option<Instant>,
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
            begun: None,
            low: [None; 2],
            well: [None; 2],
        }
    }

    /// Takes a look at the clusters into account. `low`: since when there seems to be too little of them, if that was
    /// known later than it was so.
    pub(super) fn see(&mut self, sight: Sight, low: [Option<Instant>; 2], now: Instant) {
        let is_gap = |(_, at): (Sight, Instant)| now.saturating_duration_since(at) > LONGEST_GAP;
        if self.last.replace((sight, now)).is_none_or(is_gap) {
            // Nobody knows what was meanwhile.
            (self.low, self.well, self.begun) = ([None; 2], [None; 2], Some(now));
        }
        let since = low.map(|low| low.unwrap_or(now).clamp(self.begun.unwrap_or(now), now));
        for cluster in Cluster::ALL {
            let (low, well) = (&mut self.low[cluster as usize], &mut self.well[cluster as usize]);
            if sight.of(cluster) < self.settings.min_healthy {
                (*low, *well) = (low.or(Some(since[cluster as usize])), None);
            } else {
                (*low, *well) = (None, well.or(Some(now)));
            }
        }
    }

    pub(super) fn last(&self) -> Option<Sight> {
        self.last.map(|(sight, _)| sight)
    }

    /// For how long there has been too little of each cluster, in milliseconds, if there is.
    pub(super) fn low_ms(&self, now: Instant) -> [Option<u64>; 2] {
        let for_ms = |since: Instant| now.saturating_duration_since(since).as_millis() as u64;
        self.low.map(|low| low.map(for_ms))
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
            watch.see(Sight { primary, standby }, [None; 2], at(half));
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
            watch.see(dead, [None; 2], now);
            watch.due(Cluster::Primary, Mode::Auto, now)
        };
        assert!((0..5).all(|second| due_at(1_000 * second).is_none()));
        assert_eq!(due_at(5_100), None);
        assert!((6..10).all(|second| due_at(1_000 * second + 100).is_none()));
        assert_eq!(due_at(10_100), Some(Cause::Unhealthy));
    }

    #[test]
    fn what_lasted_before_it_was_known_counts_but_not_what_was_while_nobody_looked() {
        let start = Clock::System.now().monotonic;
        let at = |ms| start + Duration::from_millis(ms);
        let sight = |primary| Sight {
            primary,
            standby: 1.0,
        };
        let mut watch = Watch::new(SETTINGS);
        for half in 0..8 {
            watch.see(sight(1.0), [None; 2], at(500 * half));
        }
        watch.see(sight(0.0), [Some(at(200)), None], at(4_000));
        assert_eq!(watch.low_ms(at(4_000)), [Some(3_800), None]);
        assert_eq!(watch.due(Cluster::Primary, Mode::Auto, at(5_100)), None);
        let due = watch.due(Cluster::Primary, Mode::Auto, at(5_200));
        assert_eq!(due, Some(Cause::Unhealthy));
        // It stood still itself, and everything that it had asked timed out meanwhile.
        watch.see(sight(1.0), [None; 2], at(5_500));
        watch.see(sight(0.0), [Some(at(5_500)), None], at(90_000));
        assert_eq!(watch.low_ms(at(90_000)), [Some(0), None]);
    }

    #[test]
    fn of_those_who_see_too_little_the_latest_says_since_when() {
        let look = |primary, low| Look {
            sight: Sight {
                primary,
                standby: 1.0,
            },
            low_ms: [low, None],
        };
        let all = together(&[look(0.0, Some(900)), look(0.0, Some(300)), look(1.0, None)]).unwrap();
        assert!((all.sight.primary - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(all.low_ms, [Some(300), None]);
        assert_eq!(together(&[]), None);
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

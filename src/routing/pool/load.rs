//! How the replicas and the lanes of an upstream are loaded, for those who look: metrics, the administrative listener,
//! the failover.
//!
//! Nothing here changes anything; requests do not come through here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::slots::at;
use super::{LANES, Pool};
use crate::routing::balance::spread::Spread;
use crate::routing::failover::Sight;
use crate::types::cluster::Cluster;
use crate::types::request::Lane;

/// Time from one look at scores and loads for the metrics to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// How one lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::routing) struct LaneLoad {
    pub(in crate::routing) lane: Lane,
    pub(in crate::routing) in_flight: usize,
    pub(in crate::routing) queue: usize,
    pub(in crate::routing) longest_queue: usize,
    /// The most that it may have.
    pub(in crate::routing) slots: usize,
}

impl Pool {
    /// What is healthy of each cluster, by slots, and since when that is less than `enough`, if it is. A replica whose
    /// breaker would let a trial in counts as healthy: a cluster that nobody asks has none that could close it.
    pub(in crate::routing) fn sight(&self, enough: f64) -> (Sight, [Option<Instant>; 2]) {
        let now = self.now();
        let look = |cluster| {
            let (mut out, mut all) = (Vec::new(), 0);
            for (_, replica) in self.members.all() {
                if replica.cluster == cluster && !replica.is_leaving() {
                    let slots = replica.slots();
                    all += slots;
                    if !replica.is_healthy() || replica.door.is_open(now) {
                        out.push((replica.silent_since().unwrap_or(now), slots));
                    }
                }
            }
            out.sort_unstable();
            let (mut left, mut low) = (all, None);
            let share = |left| left as f64 / all.max(1) as f64;
            for (since, slots) in out {
                left -= slots;
                if share(left) < enough {
                    low = low.or(Some(since));
                }
            }
            (share(left), low)
        };
        let [(primary, low), (standby, standby_low)] = Cluster::ALL.map(look);
        (Sight { primary, standby }, [low, standby_low])
    }

    /// How evenly the replicas of the cluster that has the writes are loaded, those that serve, by requests in flight at
    /// each place.
    pub(in crate::routing) fn spread(&self, in_flight: &[usize]) -> Spread {
        let active = self.state.lock().slots.standing.active();
        let members = self.members.all();
        let serving = members.filter(|(_, replica)| {
            replica.cluster == active
                && !replica.is_leaving()
                && replica.is_healthy()
                && replica.door.is_closed()
        });
        Spread::of(serving.map(|(place, replica)| 100.0 * replica.share(at(in_flight, place))))
    }

    /// Shows scores and spread as metrics, for ever.
    pub(in crate::routing) async fn keep_publishing(self: Arc<Self>) {
        loop {
            let (in_flight, _) = self.load();
            for (place, replica) in self.members.all() {
                let score = self.score(&replica, at(&in_flight, place)).score();
                replica.metrics.score.set(score);
            }
            self.variance_metric.set(self.spread(&in_flight).variance);
            sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Requests in flight by place, and how each lane stands.
    pub(in crate::routing) fn load(&self) -> (Vec<usize>, [LaneLoad; LANES]) {
        let state = self.state.lock();
        let by_place = state.slots.in_flight.iter().map(|lanes| lanes.iter().sum());
        let active = state.slots.standing.active();
        let slots = |lane| {
            let members = self
                .members
                .all()
                .filter(|(_, replica)| replica.cluster == active && !replica.is_leaving());
            members.map(|(_, replica)| state.slots.most(&replica, lane)).sum()
        };
        let lane = |lane| LaneLoad {
            lane,
            in_flight: state.slots.of(lane),
            queue: state.lanes.length(lane),
            longest_queue: state.lanes.longest(lane),
            slots: slots(lane),
        };
        (by_place.collect(), Lane::ALL.map(lane))
    }
}

//! The replicas of one upstream, their slots, and the queue of those who wait for one.
//!
//! A slot that becomes free is handed to the first in line who can use it; nobody overtakes. The queue is
//! bounded, and so is the wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Gauge, IntGauge};
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::balance::spread::Spread;
use super::balance::{Balance, Candidate};
use super::health::Event;
use super::health::ewma::Usual;
use super::health::score::Parts;
use super::replica::Replica;
use crate::types::outcome::RouteClass;
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};

/// The replicas to leave out because they failed this fetch already.
pub(super) type Avoid = SmallVec<[usize; 4]>;

/// Time from one look at scores and loads for the metrics to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The replicas of one upstream.
pub(super) struct Pool {
    pub(super) name: String,
    /// Standby replicas come last.
    pub(super) replicas: Vec<Replica>,
    /// Requests that one replica may have in flight.
    pub(super) slots: usize,
    queue_limit: usize,
    queue_metric: IntGauge,
    variance_metric: Gauge,
    /// Wakes those who wait for an answer when a replica went out or came back.
    health_changed: Notify,
    clock: Clock,
    /// What answers usually take here, for the scores.
    usual: Mutex<Usual>,
    state: Mutex<State>,
}

struct State {
    in_flight: Vec<usize>,
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
    longest_queue: usize,
    policy: Box<dyn Balance>,
}

struct Waiting {
    ticket: u64,
    avoid: Avoid,
    hand: oneshot::Sender<Taken>,
}

/// A slot that is taken; dropping it gives it to the next in line.
pub(super) struct Taken {
    pool: Arc<Pool>,
    pub(super) replica: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.in_flight[self.replica] -= 1;
        self.pool.publish_in_flight(&state, self.replica);
        drop(state);
        self.pool.serve_queue();
    }
}

impl Pool {
    pub(super) fn new(
        name: String,
        replicas: Vec<Replica>,
        slots: usize,
        queue_limit: usize,
        (queue_metric, variance_metric): (IntGauge, Gauge),
        policy: Box<dyn Balance>,
        clock: Clock,
    ) -> Self {
        Self {
            name,
            slots,
            queue_limit,
            queue_metric,
            variance_metric,
            health_changed: Notify::new(),
            clock,
            usual: Mutex::default(),
            state: Mutex::new(State {
                in_flight: vec![0; replicas.len()],
                waiting: VecDeque::new(),
                next_ticket: 0,
                longest_queue: 0,
                policy,
            }),
            replicas,
        }
    }

    /// Takes a slot of a replica outside `avoid`, waiting for one until `limit`.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full or the wait ran out.
    pub(super) async fn take(self: &Arc<Self>, avoid: &Avoid, limit: Instant) -> Result<Taken, Failure> {
        let (mut place, slot) = {
            let mut state = self.state.lock();
            // Whoever waits already comes first.
            if state.waiting.is_empty()
                && let Some(replica) = self.choose(&mut state, avoid)
            {
                return Ok(self.hand(replica));
            }
            if state.waiting.len() >= self.queue_limit {
                return Err(Failure::new(
                    FailureKind::Overloaded,
                    "every connection to the upstream is in use and too many requests wait for one",
                ));
            }
            let (hand, slot) = oneshot::channel();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(Waiting {
                ticket,
                avoid: avoid.clone(),
                hand,
            });
            state.longest_queue = state.longest_queue.max(state.waiting.len());
            self.publish_queue(&state);
            (
                Place {
                    pool: self.clone(),
                    ticket,
                    served: false,
                },
                slot,
            )
        };
        // Those before may wait for another replica than the one that would do here.
        self.serve_queue();
        match timeout_at(limit, slot).await {
            Ok(Ok(taken)) => {
                place.served = true;
                Ok(taken)
            }
            _ => Err(Failure::new(
                FailureKind::Overloaded,
                "every connection to the upstream is in use; the wait for one ran out",
            )),
        }
    }

    /// Takes what was learnt about a replica into account.
    pub(super) fn learn(self: &Arc<Self>, replica: usize, event: Event) {
        if self.replicas[replica].learn(event) {
            if self.replicas[replica].is_healthy() {
                let now = self.clock.now().monotonic;
                self.replicas[replica].signals.lock().came_back(now);
            }
            // Another set of replicas may serve now.
            self.serve_queue();
            self.health_changed.notify_waiters();
        }
    }

    /// Takes an answer of `replica` after `time` into account for its score.
    pub(super) fn answered(&self, replica: usize, class: RouteClass, time: Duration) {
        let ratio = self.usual.lock().ratio(class, time);
        let now = self.clock.now().monotonic;
        self.replicas[replica].signals.lock().answered(ratio, now);
    }

    /// Takes a failure that `replica` is to blame for into account for its score.
    pub(super) fn failed(&self, replica: usize) {
        let now = self.clock.now().monotonic;
        self.replicas[replica].signals.lock().failed(now);
    }

    /// The share of its slots that `replica` has in use with `in_flight` requests.
    pub(super) fn share(&self, in_flight: usize) -> f64 {
        in_flight as f64 / self.slots as f64
    }

    /// What the score of `replica` is made of with `in_flight` requests.
    pub(super) fn score(&self, replica: usize, in_flight: usize) -> Parts {
        let now = self.clock.now().monotonic;
        let signals = self.replicas[replica].signals.lock();
        Parts::of(&signals.inputs(self.share(in_flight), now))
    }

    /// How evenly the replicas that are not on standby are loaded, by requests in flight.
    pub(super) fn spread(&self, in_flight: &[usize]) -> Spread {
        let serving = self
            .replicas
            .iter()
            .zip(in_flight)
            .filter(|(replica, _)| !replica.standby);
        Spread::of(serving.map(|(_, in_flight)| 100.0 * self.share(*in_flight)))
    }

    /// Shows scores and spread as metrics, for ever.
    pub(super) async fn keep_publishing(self: Arc<Self>) {
        loop {
            let (in_flight, _, _) = self.load();
            for (replica, in_flight) in in_flight.iter().enumerate() {
                let score = self.score(replica, *in_flight).score();
                self.replicas[replica].metrics.score.set(score);
            }
            self.variance_metric.set(self.spread(&in_flight).variance);
            sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Returns once `replica` is unhealthy while another, outside `avoid`, is healthy.
    pub(super) async fn better_elsewhere(&self, replica: usize, avoid: &Avoid) {
        loop {
            // Before the look at the replicas, so that no change is missed.
            let changed = self.health_changed.notified();
            let mut others = self.replicas.iter().enumerate();
            if !self.replicas[replica].is_healthy()
                && others.any(|(other, it)| it.is_healthy() && !avoid.contains(&other))
            {
                return;
            }
            changed.await;
        }
    }

    /// Requests in flight by replica, those that wait, and the most that ever waited.
    pub(super) fn load(&self) -> (Vec<usize>, usize, usize) {
        let state = self.state.lock();
        (state.in_flight.clone(), state.waiting.len(), state.longest_queue)
    }

    /// Hands free slots to those who wait.
    fn serve_queue(self: &Arc<Self>) {
        let mut served: SmallVec<[(oneshot::Sender<Taken>, usize); 4]> = SmallVec::new();
        let mut state = self.state.lock();
        let mut at = 0;
        while let Some(waiting) = state.waiting.get(at) {
            let avoid = waiting.avoid.clone();
            match self.choose(&mut state, &avoid) {
                Some(replica) => {
                    if let Some(waiting) = state.waiting.remove(at) {
                        served.push((waiting.hand, replica));
                    }
                }
                // Nothing is free for anybody behind either, except for one who avoids something.
                None => match state.waiting.iter().skip(at + 1).position(|w| w.avoid != avoid) {
                    Some(offset) => at += 1 + offset,
                    None => break,
                },
            }
        }
        self.publish_queue(&state);
        drop(state);
        // Outside the lock: one who left meanwhile drops the slot, which comes back here.
        for (hand, replica) in served {
            let _ = hand.send(self.hand(replica));
        }
    }

    fn hand(self: &Arc<Self>, replica: usize) -> Taken {
        Taken {
            pool: self.clone(),
            replica,
        }
    }

    /// Chooses a replica and counts its slot as taken.
    fn choose(&self, state: &mut State, avoid: &Avoid) -> Option<usize> {
        let by_score = state.policy.by_score();
        let candidates: SmallVec<[Candidate; 16]> = self
            .fit(avoid)
            .filter(|replica| state.in_flight[*replica] < self.slots)
            .map(|replica| Candidate {
                replica,
                score: if by_score {
                    self.score(replica, state.in_flight[replica]).score()
                } else {
                    1.0
                },
                in_flight: state.in_flight[replica],
                slots: self.slots,
            })
            .collect();
        let replica = state.policy.choose(&candidates)?;
        state.in_flight[replica] += 1;
        self.publish_in_flight(state, replica);
        Some(replica)
    }

    /// The replicas that may serve, busy or not: the healthy ones; else healthy standby replicas; else all,
    /// because a request that fails is no worse than one that is refused. Replicas that failed this fetch
    /// are left out as long as any other may serve.
    fn fit<'a>(&'a self, avoid: &'a Avoid) -> impl Iterator<Item = usize> + 'a {
        let tier = move |tier: u8, replica: usize| {
            let Replica { standby, .. } = self.replicas[replica];
            let healthy = self.replicas[replica].is_healthy();
            let fresh = !avoid.contains(&replica);
            match tier {
                0 => fresh && healthy && !standby,
                1 => fresh && healthy && standby,
                2 => fresh && !standby,
                _ => !standby,
            }
        };
        let all = 0..self.replicas.len();
        let first = (0..3).find(|t| all.clone().any(|r| tier(*t, r))).unwrap_or(3);
        all.filter(move |r| tier(first, *r))
    }

    fn publish_in_flight(&self, state: &State, replica: usize) {
        let gauge = &self.replicas[replica].metrics.in_flight;
        gauge.set(state.in_flight[replica] as i64);
    }

    fn publish_queue(&self, state: &State) {
        self.queue_metric.set(state.waiting.len() as i64);
    }
}

/// A place in the queue; dropping it leaves the queue.
struct Place {
    pool: Arc<Pool>,
    ticket: u64,
    served: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let mut state = self.pool.state.lock();
        if let Ok(at) = state.waiting.binary_search_by_key(&self.ticket, |w| w.ticket) {
            state.waiting.remove(at);
            self.pool.publish_queue(&state);
        }
    }
}

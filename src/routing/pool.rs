//! The replicas of one upstream, their slots, and the queue of those who wait for one.
//!
//! A slot that becomes free is handed to the lane that has the least of its share, and there to the next in line who
//! can use it (`lanes`). No lane has more of a replica than its limit, so that long streams leave slots for pages. The
//! queues are bounded, and so is the wait.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Gauge;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::admission::Pass;
use super::balance::spread::Spread;
use super::balance::{Balance, Candidate};
use super::breaker::{Ticket, Verdict};
use super::health::Event;
use super::health::ewma::Usual;
use super::health::score::Parts;
use super::lanes::{self, Lanes};
use super::metrics::LaneMetrics;
use super::replica::Replica;
use crate::config::upstreams::LanesConfig;
use crate::types::outcome::RouteClass;
use crate::types::request::{FetchHead, Lane};
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};

/// The replicas to leave out because they failed this fetch already.
pub(super) type Avoid = SmallVec<[usize; 4]>;

const LANES: usize = Lane::ALL.len();
/// Time from one look at scores and loads for the metrics to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The replicas of one upstream.
pub(super) struct Pool {
    pub(super) name: String,
    /// Standby replicas come last.
    pub(super) replicas: Vec<Replica>,
    /// Requests that one replica may have in flight.
    pub(super) slots: usize,
    /// Of those, the most that are of one lane.
    lane_slots: [usize; LANES],
    /// What a lane has a right to, of one.
    shares: [f64; LANES],
    metrics: [LaneMetrics; LANES],
    variance_metric: Gauge,
    /// Wakes those who wait for an answer when a replica went out or came back.
    health_changed: Notify,
    clock: Clock,
    /// What answers usually take here, for the scores.
    usual: Mutex<Usual>,
    state: Mutex<State>,
}

struct State {
    slots: Slots,
    lanes: Lanes<Waiting>,
}

struct Slots {
    /// Those in use, by replica and lane.
    in_flight: Vec<[usize; LANES]>,
    policy: Box<dyn Balance>,
}

struct Waiting {
    avoid: Avoid,
    hand: oneshot::Sender<Result<Admitted, Failure>>,
}

/// A slot, and the leave to ask its replica.
pub(super) type Admitted = (Taken, Pass);

/// What a request that wants a replica gets.
enum Choice {
    Replica(usize, Ticket),
    /// Every replica that may serve is busy.
    Wait,
    /// No replica may serve.
    Refused(Failure),
}

/// Somebody who need not wait any longer.
struct Served {
    hand: oneshot::Sender<Result<Admitted, Failure>>,
    outcome: Result<(usize, Ticket), Failure>,
    lane: Lane,
}

/// How one lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneLoad {
    pub(super) lane: Lane,
    pub(super) in_flight: usize,
    pub(super) queue: usize,
    pub(super) longest_queue: usize,
    /// The most that it has of a replica.
    pub(super) slots: usize,
}

/// A slot that is taken; dropping it gives it to the next in line.
pub(super) struct Taken {
    pool: Arc<Pool>,
    pub(super) replica: usize,
    lane: Lane,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.slots.in_flight[self.replica][self.lane as usize] -= 1;
        self.pool.publish_in_flight(&state.slots, self.replica);
        drop(state);
        self.pool.serve_queue();
    }
}

impl Pool {
    pub(super) fn new(
        name: String,
        replicas: Vec<Replica>,
        slots: usize,
        (lanes, queue_limit): (&LanesConfig, usize),
        (metrics, variance_metric): ([LaneMetrics; LANES], Gauge),
        policy: Box<dyn Balance>,
        clock: Clock,
    ) -> Self {
        let lane_slots = |lane| ((slots as f64 * lanes.of(lane).limit.0) as usize).clamp(1, slots);
        Self {
            name,
            slots,
            lane_slots: Lane::ALL.map(lane_slots),
            shares: Lane::ALL.map(|lane| lanes.of(lane).share.0),
            metrics,
            variance_metric,
            health_changed: Notify::new(),
            clock,
            usual: Mutex::default(),
            state: Mutex::new(State {
                slots: Slots {
                    in_flight: vec![[0; LANES]; replicas.len()],
                    policy,
                },
                lanes: Lanes::new(queue_limit),
            }),
            replicas,
        }
    }

    /// Takes a slot of a replica outside `avoid` for `fetch`, waiting for one until `limit`.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full or the wait ran out, `NoReplica` when the breakers of all replicas that
    /// could serve are open.
    pub(super) async fn take(
        self: &Arc<Self>,
        fetch: &FetchHead,
        avoid: &Avoid,
        limit: Instant,
    ) -> Result<Admitted, Failure> {
        let lane = fetch.lane;
        let (mut place, slot) = {
            let mut state = self.state.lock();
            // Whoever waits in this lane already comes first. Those who wait in others cannot use what is free.
            if state.lanes.length(lane) == 0 {
                match self.choose(&mut state.slots, lane, avoid) {
                    Choice::Replica(replica, ticket) => {
                        self.metrics[lane as usize].wait.observe(0.0);
                        return Ok(self.hand(replica, ticket, lane));
                    }
                    Choice::Refused(failure) => return Err(failure),
                    Choice::Wait => {}
                }
            }
            let (hand, slot) = oneshot::channel();
            let waiting = Waiting {
                avoid: avoid.clone(),
                hand,
            };
            let now = self.now();
            let Ok((ticket, shed)) = state.lanes.push(lane, fetch.principal, now, waiting) else {
                self.metrics[lane as usize].shed.inc();
                return Err(too_many());
            };
            self.publish_queue(&state, lane);
            drop(state);
            if let Some(shed) = shed {
                // Its wait ends with that.
                drop(shed);
                self.metrics[lane as usize].shed.inc();
            }
            (
                Place {
                    pool: self.clone(),
                    ticket: Some(ticket),
                    lane,
                },
                slot,
            )
        };
        // Those before may wait for another replica than the one that would do here.
        self.serve_queue();
        match timeout_at(limit, slot).await {
            Ok(Ok(outcome)) => {
                place.ticket = None;
                outcome
            }
            Ok(Err(_)) => Err(too_many()),
            Err(_) => Err(Failure::new(
                FailureKind::Overloaded,
                "every connection to the upstream is in use; the wait for one ran out",
            )),
        }
    }

    /// Takes what was learnt about a replica into account.
    pub(super) fn learn(self: &Arc<Self>, replica: usize, event: Event) {
        if self.replicas[replica].learn(event) {
            if self.replicas[replica].is_healthy() {
                self.replicas[replica].signals.lock().came_back(self.now());
            }
            self.reconsider();
        }
        // After a probe, too: without requests nobody else looks.
        self.advance(replica);
    }

    /// Lets trials in to a replica whose time has come.
    pub(super) fn advance(self: &Arc<Self>, replica: usize) {
        if self.replicas[replica].door.advance(self.now()) {
            self.reconsider();
        }
    }

    /// Takes into account how a request that was let in to a replica ended.
    pub(super) fn settle(self: &Arc<Self>, replica: usize, ticket: Ticket, verdict: Verdict) {
        if self.replicas[replica].door.settle(ticket, verdict, self.now()) {
            self.reconsider();
        }
    }

    /// Another set of replicas may serve now.
    fn reconsider(self: &Arc<Self>) {
        self.serve_queue();
        self.health_changed.notify_waiters();
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now().monotonic
    }

    /// Takes an answer of `replica` after `time` into account for its score.
    pub(super) fn answered(&self, replica: usize, class: RouteClass, time: Duration) {
        let ratio = self.usual.lock().ratio(class, time);
        let now = self.now();
        self.replicas[replica].signals.lock().answered(ratio, now);
    }

    /// Takes a failure that `replica` is to blame for into account for its score.
    pub(super) fn failed(&self, replica: usize) {
        let now = self.now();
        self.replicas[replica].signals.lock().failed(now);
    }

    /// The share of its slots that `replica` has in use with `in_flight` requests.
    pub(super) fn share(&self, in_flight: usize) -> f64 {
        in_flight as f64 / self.slots as f64
    }

    /// What the score of `replica` is made of with `in_flight` requests.
    pub(super) fn score(&self, replica: usize, in_flight: usize) -> Parts {
        let now = self.now();
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
            let (in_flight, _) = self.load();
            for (replica, in_flight) in in_flight.iter().enumerate() {
                let score = self.score(replica, *in_flight).score();
                self.replicas[replica].metrics.score.set(score);
            }
            self.variance_metric.set(self.spread(&in_flight).variance);
            sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Returns once `replica` is unhealthy while another, outside `avoid`, is healthy and lets everybody in.
    pub(super) async fn better_elsewhere(&self, replica: usize, avoid: &Avoid) {
        loop {
            // Before the look at the replicas, so that no change is missed.
            let changed = self.health_changed.notified();
            let mut others = self.replicas.iter().enumerate();
            if !self.replicas[replica].is_healthy()
                && others.any(|(other, it)| it.is_healthy() && it.door.is_closed() && !avoid.contains(&other))
            {
                return;
            }
            changed.await;
        }
    }

    /// Requests in flight by replica, and how each lane stands.
    pub(super) fn load(&self) -> (Vec<usize>, [LaneLoad; LANES]) {
        let state = self.state.lock();
        let by_replica = state.slots.in_flight.iter().map(|lanes| lanes.iter().sum());
        let lane = |lane| LaneLoad {
            lane,
            in_flight: state.slots.of(lane),
            queue: state.lanes.length(lane),
            longest_queue: state.lanes.longest(lane),
            slots: self.lane_slots[lane as usize],
        };
        (by_replica.collect(), Lane::ALL.map(lane))
    }

    /// Hands free slots to those who wait.
    fn serve_queue(self: &Arc<Self>) {
        let mut served: SmallVec<[Served; 4]> = SmallVec::new();
        let mut state = self.state.lock();
        let now = self.now();
        while let Some(next) = self.serve_one(&mut state, now) {
            served.push(next);
        }
        drop(state);
        // Outside the lock: one who left meanwhile drops the slot, which comes back here.
        for Served { hand, outcome, lane } in served {
            let _ = hand.send(outcome.map(|(replica, ticket)| self.hand(replica, ticket, lane)));
        }
    }

    /// The next who can have a slot, of the lane that has the least of its share.
    fn serve_one(&self, state: &mut State, now: Instant) -> Option<Served> {
        let State { slots, lanes } = state;
        let mut order: SmallVec<[(f64, Lane); LANES]> = Lane::ALL
            .into_iter()
            .filter(|lane| lanes.length(*lane) > 0)
            .map(|lane| (slots.of(lane) as f64 / self.shares[lane as usize], lane))
            .collect();
        order.sort_by(|one, other| one.0.total_cmp(&other.0));
        order.into_iter().find_map(|(_, lane)| {
            // What is not free for one is not free for another who avoids the same.
            let mut in_vain: SmallVec<[Avoid; 2]> = SmallVec::new();
            let fits = |waiting: &Waiting| {
                if in_vain.contains(&waiting.avoid) {
                    return None;
                }
                match self.choose(slots, lane, &waiting.avoid) {
                    Choice::Replica(replica, ticket) => Some(Ok((replica, ticket))),
                    Choice::Refused(failure) => Some(Err(failure)),
                    Choice::Wait => {
                        in_vain.push(waiting.avoid.clone());
                        None
                    }
                }
            };
            let (waiting, outcome, waited) = lanes.next(lane, now, fits)?;
            self.metrics[lane as usize].wait.observe(waited.as_secs_f64());
            self.metrics[lane as usize].queue.set(lanes.length(lane) as i64);
            let hand = waiting.hand;
            Some(Served { hand, outcome, lane })
        })
    }

    fn hand(self: &Arc<Self>, replica: usize, ticket: Ticket, lane: Lane) -> Admitted {
        let taken = Taken {
            pool: self.clone(),
            replica,
            lane,
        };
        (taken, Pass::new(self.clone(), replica, ticket))
    }

    /// Chooses a replica, enters there and counts its slot as taken.
    fn choose(&self, slots: &mut Slots, lane: Lane, avoid: &Avoid) -> Choice {
        let now = self.now();
        let by_score = slots.policy.by_score();
        loop {
            let mut fit = self.fit(avoid, now).peekable();
            if fit.peek().is_none() {
                return Choice::Refused(self.refusal(now));
            }
            let candidates: SmallVec<[Candidate; 16]> = fit
                .filter(|replica| self.has_slot(&slots.in_flight[*replica], lane))
                .map(|replica| {
                    let in_flight = slots.in_flight[replica].iter().sum();
                    Candidate {
                        replica,
                        score: if by_score {
                            self.score(replica, in_flight).score()
                        } else {
                            1.0
                        },
                        in_flight,
                        slots: self.slots,
                    }
                })
                .collect();
            let Some(replica) = slots.policy.choose(&candidates) else {
                return Choice::Wait;
            };
            // It may have opened since it was found fit.
            if let Some(ticket) = self.replicas[replica].door.enter(now) {
                slots.in_flight[replica][lane as usize] += 1;
                self.publish_in_flight(slots, replica);
                return Choice::Replica(replica, ticket);
            }
        }
    }

    /// Whether a replica with so many in flight has room for one more of `lane`.
    fn has_slot(&self, in_flight: &[usize; LANES], lane: Lane) -> bool {
        in_flight.iter().sum::<usize>() < self.slots
            && in_flight[lane as usize] < self.lane_slots[lane as usize]
    }

    /// The replicas that may serve, busy or not: the healthy ones; else healthy standby replicas; else all,
    /// because a request that fails is no worse than one that is refused. Replicas that failed this fetch
    /// are left out as long as any other may serve. One whose breaker lets nobody in never serves.
    fn fit<'a>(&'a self, avoid: &'a Avoid, now: Instant) -> impl Iterator<Item = usize> + 'a {
        let admitting: SmallVec<[usize; 16]> = (0..self.replicas.len())
            .filter(|replica| self.replicas[*replica].door.admits(now))
            .collect();
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
        let first = (0..3)
            .find(|t| admitting.iter().any(|r| tier(*t, *r)))
            .unwrap_or(3);
        admitting.into_iter().filter(move |r| tier(first, *r))
    }

    /// What is said when no replica lets anybody in: when the first one will.
    fn refusal(&self, now: Instant) -> Failure {
        let first = self
            .replicas
            .iter()
            .filter(|replica| !replica.standby || replica.is_healthy())
            .map(|replica| replica.door.state(now).1)
            .min()
            .unwrap_or_default();
        // The next second: a client that comes too early is refused again.
        let seconds = first.as_secs() + u64::from(first.subsec_nanos() > 0);
        Failure {
            retry_after: Some(u16::try_from(seconds.max(1)).unwrap_or(u16::MAX)),
            ..Failure::new(
                FailureKind::NoReplica,
                "every replica of the upstream fails too often and is left alone for a while",
            )
        }
    }

    fn publish_in_flight(&self, slots: &Slots, replica: usize) {
        let gauge = &self.replicas[replica].metrics.in_flight;
        gauge.set(slots.in_flight[replica].iter().sum::<usize>() as i64);
    }

    fn publish_queue(&self, state: &State, lane: Lane) {
        self.metrics[lane as usize]
            .queue
            .set(state.lanes.length(lane) as i64);
    }
}

impl Slots {
    /// Those in use of one lane.
    fn of(&self, lane: Lane) -> usize {
        self.in_flight.iter().map(|lanes| lanes[lane as usize]).sum()
    }
}

fn too_many() -> Failure {
    Failure::new(
        FailureKind::Overloaded,
        "every connection to the upstream is in use and too many requests wait for one",
    )
}

/// A place in the queue; dropping it leaves the queue.
struct Place {
    pool: Arc<Pool>,
    ticket: Option<lanes::Ticket>,
    lane: Lane,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.pool.state.lock();
        // Dropped after the lock: it holds nothing but what wakes us.
        let _left = state.lanes.leave(ticket);
        self.pool.publish_queue(&state, self.lane);
    }
}

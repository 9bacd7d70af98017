//! The replicas of one upstream, their slots, and the queue of those who wait for one.
//!
//! A slot that becomes free is handed to the lane that has the least of its share, and there to the next in line who
//! can use it (`lanes`). No lane has more of a replica than its limit, so that long streams leave slots for pages. The
//! queues are bounded, and so is the wait.

mod load;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Gauge;
use smallvec::SmallVec;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::admission::Pass;
use super::balance::{Balance, Candidate};
use super::breaker::{Ticket, Verdict};
use super::failover::{Standing, Wish};
use super::fit::{Asker, course, fit, may_be_elsewhere, may_be_held, refusal, unplaced, views};
use super::health::Event;
use super::health::ewma::{Route, Usual};
use super::health::score::Parts;
use super::lanes::{self, Lanes};
use super::members::Members;
use super::metrics::LaneMetrics;
use super::place::Rules;
use super::replica::Replica;
use crate::config::upstreams::LanesConfig;
use crate::types::chance::Chance;
use crate::types::cluster::{Bond, Cluster, Epoch};
use crate::types::outcome::RouteClass;
use crate::types::request::{FetchHead, Lane};
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind, grpc};

pub(super) use load::LaneLoad;
use slots::Slots;
pub(super) use slots::at;

/// The replicas to leave out because they failed this fetch already.
pub(super) type Avoid = SmallVec<[usize; 4]>;

const LANES: usize = Lane::ALL.len();

/// The replicas of one upstream.
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) members: Members,
    /// What a lane has a right to, of one.
    shares: [f64; LANES],
    /// Which replicas serve which requests.
    rules: Option<Arc<Rules>>,
    metrics: [LaneMetrics; LANES],
    variance_metric: Gauge,
    /// Wakes those who wait for an answer when a replica went out or came back.
    health_changed: Notify,
    /// Has a permit once its replicas have been searched for.
    searched: Semaphore,
    clock: Clock,
    /// What answers usually take here, for the scores.
    usual: Mutex<Usual>,
    state: Mutex<State>,
}

struct State {
    slots: Slots,
    lanes: Lanes<Waiting>,
}

struct Waiting {
    class: RouteClass,
    wish: Wish,
    avoid: Avoid,
    hand: oneshot::Sender<Result<Admitted, Failure>>,
}

/// A slot, and the leave to ask its replica.
pub(super) type Admitted = (Taken, Pass);

/// What a request that wants a replica gets.
enum Choice {
    Replica(Chosen),
    /// Every replica that may serve is busy.
    Wait,
    /// No replica may serve.
    Refused(Failure),
}

/// The replica that a request has, with the leave to ask it and the epoch to which what it begins there belongs.
struct Chosen {
    replica: Arc<Replica>,
    ticket: Ticket,
    epoch: Epoch,
}

/// Somebody who need not wait any longer.
struct Served {
    hand: oneshot::Sender<Result<Admitted, Failure>>,
    outcome: Result<Chosen, Failure>,
    lane: Lane,
}

/// A slot that is taken; dropping it gives it to the next in line.
pub(super) struct Taken {
    pool: Arc<Pool>,
    pub(super) replica: Arc<Replica>,
    /// The epoch to which what is begun with it belongs.
    pub(super) epoch: Epoch,
    lane: Lane,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.slots.add(&self.replica, self.lane, -1);
        drop(state);
        self.pool.serve_queue();
    }
}

impl Pool {
    pub(super) fn new(
        name: String,
        (lanes, queue_limit): (&LanesConfig, usize),
        (metrics, variance_metric): ([LaneMetrics; LANES], Gauge),
        (policy, rules, chance): (Box<dyn Balance>, Option<Arc<Rules>>, Chance),
        clock: Clock,
    ) -> Self {
        Self {
            name,
            members: Members::default(),
            shares: Lane::ALL.map(|lane| lanes.of(lane).share.0),
            rules,
            metrics,
            variance_metric,
            health_changed: Notify::new(),
            searched: Semaphore::new(0),
            clock,
            usual: Mutex::default(),
            state: Mutex::new(State {
                slots: Slots::new(lanes, policy, chance),
                lanes: Lanes::new(queue_limit),
            }),
        }
    }

    /// Takes `replica` in.
    pub(super) fn join(self: &Arc<Self>, replica: Arc<Replica>) {
        {
            // Under the lock, so that the place is counted before it can be chosen.
            let mut state = self.state.lock();
            let places = state.slots.in_flight.len().max(replica.place() + 1);
            state.slots.in_flight.resize(places, [0; LANES]);
            self.members.join(replica);
        }
        self.reconsider();
    }

    /// Frees the place of a replica that leaves once nothing is in flight there. True when it is free.
    pub(super) fn free(&self, replica: &Replica) -> bool {
        let state = self.state.lock();
        let idle = state.slots.in_flight[replica.place()].iter().sum::<usize>() == 0;
        if idle {
            self.members.free(replica.place());
        }
        idle
    }

    /// Takes a slot of a replica outside `avoid` for `fetch`, waiting for one until `limit`.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full or the wait ran out, `NoReplica` when the breakers of all replicas that
    /// could serve are open, or when no replica is one that the hard rules let serve.
    pub(super) async fn take(
        self: &Arc<Self>,
        fetch: &FetchHead,
        (avoid, wish): (&Avoid, Wish),
        limit: Instant,
    ) -> Result<Admitted, Failure> {
        let (lane, class) = (fetch.lane, fetch.class);
        let unplaced = |members: &[_]| unplaced(members, class, self.rules.as_deref());
        // To wait would not help.
        if let Some(failure) = self.members.with(unplaced) {
            return Err(failure);
        }
        let (mut place, slot) = {
            let mut state = self.state.lock();
            // Whoever waits in this lane already comes first. Those who wait in others cannot use what is free.
            if state.lanes.length(lane) == 0 {
                match self.choose(&mut state.slots, lane, (class, wish), avoid) {
                    Choice::Replica(chosen) => {
                        self.metrics[lane as usize].wait.observe(0.0);
                        return Ok(self.hand(chosen, lane));
                    }
                    Choice::Refused(failure) => return Err(failure),
                    Choice::Wait => {}
                }
            }
            let (hand, slot) = oneshot::channel();
            let waiting = Waiting {
                class,
                wish,
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
            // The caller of gRPC has said how long the whole may take, and is told that it did.
            Err(_) if fetch.deadline == Some(limit) && grpc::is_grpc(&fetch.parts.headers) => {
                let detail = "the time for the call passed while it waited for a connection to the upstream";
                Err(Failure::new(FailureKind::UpstreamTimeout, detail))
            }
            Err(_) => Err(Failure::new(
                FailureKind::Overloaded,
                "every connection to the upstream is in use; the wait for one ran out",
            )),
        }
    }

    /// Takes a slot that is free now, of a healthy replica outside `avoid`. With `pressing` it may be one of the other
    /// cluster, if that may be asked; otherwise nobody may be waiting for a slot.
    ///
    /// # Errors
    /// `Overloaded` when there is none.
    pub(super) fn take_at_once(
        self: &Arc<Self>,
        fetch: &FetchHead,
        (avoid, wish): (&Avoid, Wish),
        pressing: bool,
    ) -> Result<Admitted, Failure> {
        let (lane, class, now) = (fetch.lane, fetch.class, self.now());
        let mut state = self.state.lock();
        let standing = state.slots.standing;
        let may_be = |members: &[_]| {
            let course = course(members, standing, wish, now)?;
            Ok(course.is_some_and(|course| {
                may_be_elsewhere(members, Asker { class, course, avoid }, pressing, now)
            }))
        };
        let waits = |lane: &Lane| state.lanes.length(*lane) > 0;
        let others_first = waits(&lane) || (!pressing && Lane::ALL.iter().any(waits));
        if !others_first
            && self.members.with(may_be)?
            && let Choice::Replica(chosen) = self.choose(&mut state.slots, lane, (class, wish), avoid)
        {
            return Ok(self.hand(chosen, lane));
        }
        Err(Failure::new(
            FailureKind::Overloaded,
            "no other replica of the upstream is free",
        ))
    }

    /// Takes what was learnt about a replica from something that was begun at `began` into account.
    pub(super) fn learn(self: &Arc<Self>, replica: &Replica, event: Event, began: Instant) {
        if replica.learn(event, began, self.now()) {
            if replica.is_healthy() {
                replica.signals.lock().came_back(self.now());
            }
            self.reconsider();
        }
        // After a probe, too: without requests nobody else looks.
        self.advance(replica);
    }

    /// Lets trials in to a replica whose time has come.
    pub(super) fn advance(self: &Arc<Self>, replica: &Replica) {
        if replica.door.advance(self.now()) {
            self.reconsider();
        }
    }

    /// Takes into account how a request that was let in to a replica ended.
    pub(super) fn settle(self: &Arc<Self>, replica: &Replica, ticket: Ticket, verdict: Verdict) {
        if replica.door.settle(ticket, verdict, self.now()) {
            self.reconsider();
        }
    }

    /// Another set of replicas may serve now.
    pub(super) fn reconsider(self: &Arc<Self>) {
        self.serve_queue();
        self.health_changed.notify_waiters();
    }

    /// Goes by how the clusters stand from now on.
    pub(super) fn stand(self: &Arc<Self>, standing: Standing) {
        let before = std::mem::replace(&mut self.state.lock().slots.standing, standing);
        if before != standing {
            self.reconsider();
        }
    }

    /// Has the replicas of `cluster` that are taken for healthy probed at once.
    pub(super) fn probe_soon(&self, cluster: Cluster) {
        for (_, replica) in self.members.all() {
            if replica.cluster == cluster && replica.is_healthy() {
                replica.probe_soon.notify_one();
            }
        }
    }

    /// Its replicas have been searched for, with or without success.
    pub(super) fn searched(&self) {
        if self.searched.available_permits() == 0 {
            self.searched.add_permits(1);
        }
    }

    /// Returns once its replicas have been searched for.
    pub(super) async fn is_searched(&self) {
        let _ = self.searched.acquire().await;
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now().monotonic
    }

    /// Takes an answer of `replica` after `time` into account for its score.
    pub(super) fn answered(self: &Arc<Self>, replica: &Replica, route: Route, time: Duration) {
        let (ratio, now) = (self.usual.lock().ratio(route, time), self.now());
        replica.signals.lock().answered(ratio, now);
        replica.observed.answered(time, now);
        if replica.found(route, Some(time), now) {
            self.serve_queue();
        }
    }

    /// Takes a failure that `replica` is to blame for into account for its score.
    pub(super) fn failed(&self, replica: &Replica) {
        replica.signals.lock().failed(self.now());
    }

    /// What the score of `replica` is made of with `in_flight` requests.
    pub(super) fn score(&self, replica: &Replica, in_flight: usize) -> Parts {
        let signals = replica.signals.lock();
        Parts::of(&signals.inputs(replica.share(in_flight), self.now()))
    }

    /// Whether what wants `wish` would wait for the other cluster, if its own were found to be gone.
    pub(super) fn may_be_held(&self, wish: Wish) -> bool {
        let (standing, now) = (self.state.lock().slots.standing, self.now());
        self.members
            .with(|members| may_be_held(members, standing, wish, now))
    }

    /// Returns once `replica` is unhealthy.
    pub(super) async fn is_out(&self, replica: &Replica) {
        loop {
            // Before the look, so that no change is missed.
            let changed = self.health_changed.notified();
            if !replica.is_healthy() {
                return;
            }
            changed.await;
        }
    }

    /// Returns once `replica` is unhealthy while another, outside `avoid`, is healthy and lets everybody in.
    pub(super) async fn better_elsewhere(
        &self,
        replica: &Replica,
        class: RouteClass,
        (avoid, wish): (&Avoid, Wish),
    ) {
        // Work is nowhere else.
        let is_bound = matches!(wish.owner, Some((_, _, Bond::Must)));
        loop {
            // Before the look at the replicas, so that no change is missed.
            let changed = self.health_changed.notified();
            let serves = |other: &Replica| {
                other.is_healthy()
                    && other.is_open_to(class)
                    && other.door.is_closed()
                    && !avoid.contains(&other.place())
                    && (!is_bound || other.cluster == replica.cluster)
            };
            if !replica.is_healthy()
                && self
                    .members
                    .with(|all| all.iter().flatten().any(|other| serves(other)))
            {
                return;
            }
            changed.await;
        }
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
            let _ = hand.send(outcome.map(|chosen| self.hand(chosen, lane)));
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
            // What is not free for one is not free for another of the class who avoids the same.
            let mut in_vain: SmallVec<[((RouteClass, Wish), Avoid); 2]> = SmallVec::new();
            let fits = |waiting: &Waiting| {
                let what = (waiting.class, waiting.wish);
                if in_vain
                    .iter()
                    .any(|(it, avoid)| *it == what && *avoid == waiting.avoid)
                {
                    return None;
                }
                match self.choose(slots, lane, what, &waiting.avoid) {
                    Choice::Replica(chosen) => Some(Ok(chosen)),
                    Choice::Refused(failure) => Some(Err(failure)),
                    Choice::Wait => {
                        in_vain.push((what, waiting.avoid.clone()));
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

    fn hand(self: &Arc<Self>, chosen: Chosen, lane: Lane) -> Admitted {
        let taken = Taken {
            pool: self.clone(),
            replica: chosen.replica.clone(),
            epoch: chosen.epoch,
            lane,
        };
        (taken, Pass::new(self.clone(), chosen.replica, chosen.ticket))
    }

    /// Chooses a replica, enters there and counts its slot as taken.
    fn choose(&self, slots: &mut Slots, lane: Lane, what: (RouteClass, Wish), avoid: &Avoid) -> Choice {
        let now = self.now();
        let by_score = slots.policy.by_score();
        let (class, wish) = what;
        self.members.with(|members| {
            let course = match course(members, slots.standing, wish, now) {
                Ok(Some(course)) => course,
                Ok(None) => return Choice::Wait,
                Err(failure) => return Choice::Refused(failure),
            };
            let asker = Asker { class, course, avoid };
            loop {
                let fit = fit(members, asker, now);
                if fit.is_empty() {
                    let failure = unplaced(members, class, self.rules.as_deref());
                    return Choice::Refused(failure.unwrap_or_else(|| refusal(members, asker, now)));
                }
                let score = |replica: &Replica, in_flight| match by_score {
                    true => self.score(replica, in_flight).score(),
                    false => 1.0,
                };
                let free = fit.iter().filter(|replica| slots.has_room(replica, lane));
                let mut candidates: SmallVec<[Candidate; 16]> = free
                    .map(|replica| {
                        let in_flight = slots.at(replica);
                        Candidate {
                            replica: replica.place(),
                            score: score(replica, in_flight),
                            in_flight,
                            slots: replica.slots(),
                        }
                    })
                    .collect();
                if let Some(rules) = self.rules.as_ref().filter(|rules| rules.chooses(class)) {
                    let score = |replica: &Replica| score(replica, slots.at(replica));
                    let views = views(members, &fit, &candidates, asker, score);
                    let left = rules.narrow(class, &views, &mut slots.chance);
                    candidates.retain(|candidate| left.contains(&candidate.replica));
                }
                let chosen = slots.policy.choose(&candidates);
                let Some(replica) = chosen.and_then(|place| members[place].as_ref()) else {
                    return Choice::Wait;
                };
                // It may have opened since it was found fit.
                if let Some(ticket) = replica.door.enter(now) {
                    slots.add(replica, lane, 1);
                    let (replica, epoch) = (replica.clone(), course.epoch);
                    return Choice::Replica(Chosen {
                        replica,
                        ticket,
                        epoch,
                    });
                }
            }
        })
    }

    fn publish_queue(&self, state: &State, lane: Lane) {
        self.metrics[lane as usize]
            .queue
            .set(state.lanes.length(lane) as i64);
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

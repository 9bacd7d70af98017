//! Three instances, two clusters of four replicas and a Redis, with a network in which everything is late or lost.
//!
//! Every 50 ms each instance has a write and a read; where they go is what the promises are about. Time is a number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::INSTANCES;
use crate::routing::failover::instance::Instance;
use crate::routing::failover::ledger::Ledger;
use crate::routing::failover::record::{Beat, Cause, Heard, Mode, Proposal, Record};
use crate::routing::failover::registry::DEADLINE;
use crate::routing::failover::standing::Wish;
use crate::routing::failover::watch::{Settings, Sight};
use crate::types::cluster::{Cluster, Epoch};
use crate::types::time::Clock;

pub(super) const SETTINGS_AFTER_MS: u64 = 5_000;
const SETTINGS: Settings = Settings {
    min_healthy: 0.5,
    after: Duration::from_millis(SETTINGS_AFTER_MS),
    back_after: Duration::from_secs(10),
    lease_ttl: Duration::from_millis(LEASE_MS),
};
const LEASE_MS: u64 = 3_000;
const TICK_MS: u64 = 50;
const BEAT_MS: u64 = 250;
const DEADLINE_MS: u64 = DEADLINE.as_millis() as u64;
/// Within this all follow.
const FOLLOW_MS: u64 = 1_000;
const REPLICAS: u32 = 4;

/// How the way from an instance to Redis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Works,
    /// Nothing gets through.
    Down,
    /// Redis does what it is asked, and nobody hears of it.
    LosesReplies,
    /// Either way takes so many milliseconds.
    Slow(u64),
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Wait(u64),
    ToRedis(usize, Network),
    ToCluster(usize, Cluster, bool),
    Healthy(Cluster, u32),
    /// From now on an instance notices late, by so much, that a cluster is gone.
    Notices(usize, u64),
    /// An instance forgets everything.
    Restart(usize),
    Runs(usize, bool),
    Redis(bool),
    /// Redis comes back as it was some changes ago; the last: empty.
    Forget(usize),
    Steer(usize, Mode),
}

/// What is under way between an instance and Redis.
#[derive(Debug, Clone)]
enum Message {
    Beat(Beat),
    Propose(Proposal),
    Heard(Heard),
    Begun(Record),
}

#[derive(Debug, Clone)]
struct Flight {
    at: u64,
    sent: u64,
    instance: usize,
    life: u32,
    message: Message,
}

struct Running {
    instance: Instance,
    life: u32,
    runs: bool,
    network: Network,
    reaches: [bool; 2],
    next_beat: u64,
    /// How long it takes to notice that too little of a cluster is left.
    notices_after: u64,
    /// Since when there is too little of each for it.
    low_since: [Option<u64>; 2],
    /// Since when every question was answered at once.
    works_since: u64,
    /// What it heard last in this life, and when it had asked.
    heard: Option<(Epoch, u64)>,
    /// The highest epoch of this life.
    highest: Epoch,
}

pub(super) struct World {
    start: Instant,
    now: u64,
    running: Vec<Running>,
    healthy: [u32; 2],
    ledger: Ledger,
    redis_runs: bool,
    snapshots: Vec<Ledger>,
    flights: Vec<Flight>,
    /// The cluster in which writes of an epoch went.
    written: BTreeMap<Epoch, Cluster>,
    /// Epochs that Redis ever had.
    begun: BTreeSet<Epoch>,
    /// Since when Redis has had this epoch, without forgetting.
    stored: (Option<Epoch>, u64),
    /// When somebody last saw too little of each cluster,
    low_at: [u64; 2],
    /// and when nobody had for long enough to be noticed.
    all_well: [u64; 2],
    pub(super) writes: u64,
    pub(super) log: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(log: bool) -> Self {
        let running = (0..INSTANCES).map(|at| Running {
            instance: fresh(at, 0),
            life: 0,
            runs: true,
            network: Network::Works,
            reaches: [true; 2],
            next_beat: 70 * at as u64,
            notices_after: 0,
            low_since: [None; 2],
            works_since: 0,
            heard: None,
            highest: Epoch(0),
        });
        Self {
            start: Clock::System.now().monotonic,
            now: 0,
            running: running.collect(),
            healthy: [REPLICAS; 2],
            ledger: Ledger::default(),
            redis_runs: true,
            snapshots: Vec::new(),
            flights: Vec::new(),
            written: BTreeMap::new(),
            begun: BTreeSet::new(),
            stored: (None, 0),
            low_at: [0; 2],
            all_well: [0; 2],
            writes: 0,
            log: log.then(Vec::new),
        }
    }

    /// Plays the steps; afterwards everything is repaired, and what must come of that is looked for.
    pub(super) fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        self.play_only(steps)?;
        self.say(|| "all is repaired, the primary is dead".to_owned());
        self.redis_runs = true;
        self.all_since_now();
        self.healthy = [0, REPLICAS];
        for at in 0..INSTANCES {
            self.running[at].network = Network::Works;
            self.running[at].reaches = [true; 2];
            self.running[at].runs = true;
            self.running[at].notices_after = 0;
        }
        // An operator's wish may be on its way.
        self.wait(2_500)?;
        self.steer(0, Mode::Auto);
        self.wait(SETTINGS_AFTER_MS + LEASE_MS + 2 * FOLLOW_MS)?;
        self.all_at(Cluster::Standby)?;
        self.say(|| "the primary is well".to_owned());
        self.healthy = [REPLICAS; 2];
        self.wait(SETTINGS.back_after.as_millis() as u64 + 2 * FOLLOW_MS)?;
        self.all_at(Cluster::Primary)
    }

    pub(super) fn play_only(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.say(|| format!("{step:?}"));
            match *step {
                Step::Wait(ms) => self.wait(ms)?,
                Step::ToRedis(at, network) => self.running[at].network = network,
                Step::ToCluster(at, cluster, works) => self.running[at].reaches[cluster as usize] = works,
                Step::Healthy(cluster, healthy) => self.healthy[cluster as usize] = healthy,
                Step::Notices(at, ms) => self.running[at].notices_after = ms,
                Step::Restart(at) => {
                    let running = &mut self.running[at];
                    running.life += 1;
                    running.instance = fresh(at, running.life);
                    (running.heard, running.highest) = (None, Epoch(0));
                    running.works_since = self.now;
                }
                Step::Runs(at, runs) => {
                    self.running[at].runs = runs;
                    self.running[at].works_since = self.now;
                }
                Step::Redis(runs) => {
                    self.redis_runs = runs;
                    self.all_since_now();
                }
                Step::Forget(back) => {
                    let at = self.snapshots.len().checked_sub(1 + back);
                    self.ledger = at.map_or_else(Ledger::default, |at| self.snapshots[at].clone());
                    self.stored = (None, self.now);
                    self.all_since_now();
                }
                Step::Steer(at, mode) => self.steer(at, mode),
            }
        }
        Ok(())
    }

    fn all_since_now(&mut self) {
        for running in &mut self.running {
            running.works_since = self.now;
        }
    }

    fn steer(&mut self, at: usize, mode: Mode) {
        let running = &self.running[at];
        let wanted = running
            .instance
            .steer(mode, self.at(self.now), self.now)
            .filter(|_| running.runs);
        if let Some(proposal) = wanted {
            self.send(at, Message::Propose(proposal));
        }
    }

    fn wait(&mut self, ms: u64) -> Result<(), String> {
        for _ in 0..ms / TICK_MS {
            self.now += TICK_MS;
            self.tick()?;
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), String> {
        for at in 0..INSTANCES {
            let now = self.at(self.now);
            self.look(at);
            let sight = self.noticed(at);
            let running = &mut self.running[at];
            if running.network != Network::Works {
                running.works_since = self.now;
            }
            if running.runs && running.next_beat <= self.now {
                let beat = running.instance.beat(sight, now, self.now);
                running.next_beat = self.now + BEAT_MS;
                self.send(at, Message::Beat(beat));
            }
        }
        for cluster in Cluster::ALL {
            let sees_low =
                |at: usize| self.running[at].runs && self.sight(at).of(cluster) < SETTINGS.min_healthy;
            let place = cluster as usize;
            if (0..INSTANCES).any(sees_low) {
                self.low_at[place] = self.now;
            } else if self.now > self.low_at[place] + FOLLOW_MS {
                self.all_well[place] = self.now;
            }
        }
        self.deliver()?;
        for at in (0..INSTANCES)
            .filter(|at| self.running[*at].runs)
            .collect::<Vec<_>>()
        {
            self.check(at)?;
        }
        self.check_all()
    }

    /// Sends a message on the way that the instance's network has now. On a good one it is there, with its reply, in
    /// the same tick.
    fn send(&mut self, at: usize, message: Message) {
        let running = &self.running[at];
        let delay = match running.network {
            Network::Works | Network::LosesReplies => 0,
            Network::Slow(ms) => ms,
            Network::Down => return,
        };
        self.flights.push(Flight {
            at: self.now + delay,
            sent: self.now,
            instance: at,
            life: running.life,
            message,
        });
    }

    fn deliver(&mut self) -> Result<(), String> {
        while let Some(next) = self.flights.iter().position(|flight| flight.at <= self.now) {
            let flight = self.flights.remove(next);
            let reply = match &flight.message {
                Message::Beat(beat) => self
                    .redis_runs
                    .then(|| Message::Heard(self.ledger.beat(beat, LEASE_MS, self.now))),
                Message::Propose(proposal) => {
                    let begun = self.redis_runs && self.propose(proposal, flight.sent)?;
                    begun.then(|| Message::Begun(proposal.record.clone()))
                }
                Message::Heard(_) | Message::Begun(_) => {
                    self.arrive(flight);
                    continue;
                }
            };
            self.note_stored()?;
            let delay = match self.running[flight.instance].network {
                Network::Works => 0,
                Network::Slow(ms) => ms,
                Network::Down | Network::LosesReplies => continue,
            };
            if let Some(message) = reply {
                let at = self.now + delay;
                self.flights.push(Flight {
                    at,
                    message,
                    ..flight
                });
            }
        }
        Ok(())
    }

    fn propose(&mut self, proposal: &Proposal, sent: u64) -> Result<bool, String> {
        let before = self.ledger.clone();
        let begun = self.ledger.propose(proposal, self.now);
        if begun {
            if sent + DEADLINE_MS < self.now {
                let late = self.now - sent;
                return Err(format!("{proposal:?} began {late} ms after it was asked for"));
            }
            self.snapshots.push(before);
            let (record, from) = (&proposal.record, proposal.from.cluster());
            self.say(|| format!("begun: {record:?}"));
            let record = &proposal.record;
            let well = self.now - self.all_well[from as usize];
            if record.details.cause == Cause::Unhealthy && well + 2 * FOLLOW_MS < SETTINGS_AFTER_MS {
                return Err(format!(
                    "{from:?} was given up, of which nobody saw too little {well} ms ago"
                ));
            }
        }
        Ok(begun)
    }

    /// What Redis has may not become less, unless it forgets.
    fn note_stored(&mut self) -> Result<(), String> {
        let stored = self.ledger.epoch();
        if stored < self.stored.0 {
            return Err(format!("Redis had {:?} and has {stored:?}", self.stored.0));
        }
        if stored != self.stored.0 {
            self.stored = (stored, self.now);
            self.begun.extend(stored);
        }
        Ok(())
    }

    /// A reply reaches its instance, unless that is gone or has given up waiting.
    fn arrive(&mut self, flight: Flight) {
        let (now, sent) = (self.at(self.now), self.at(flight.sent));
        let running = &mut self.running[flight.instance];
        if running.life != flight.life || !running.runs || self.now > flight.sent + DEADLINE_MS {
            return;
        }
        match flight.message {
            Message::Heard(heard) => {
                running.heard = running.heard.max(Some((heard.record.epoch, flight.sent)));
                running.instance.hear(heard, sent, now);
                if let Some(proposal) = running.instance.wants(now, self.now) {
                    self.send(flight.instance, Message::Propose(proposal));
                }
            }
            Message::Begun(record) => {
                running.heard = running.heard.max(Some((record.epoch, flight.sent)));
                running.instance.adopt(record, sent);
            }
            Message::Beat(_) | Message::Propose(_) => {}
        }
    }

    /// Where the write and the read of an instance go, and whether they may.
    fn check(&mut self, at: usize) -> Result<(), String> {
        let fail = |what: String| Err(format!("instance {at} at {} ms: {what}", self.now));
        let running = &self.running[at];
        let standing = running.instance.standing(self.at(self.now));
        if standing.course(Wish::plain(true)).is_err() {
            return fail("a read is refused".into());
        }
        let epoch = running.instance.record().map(|record| record.epoch);
        if epoch < Some(running.highest) && running.highest > Epoch(0) {
            return fail(format!("it was in {:?} and is in {epoch:?}", running.highest));
        }
        let works = self.now.saturating_sub(running.works_since.max(self.stored.1));
        if self.redis_runs && works > FOLLOW_MS && epoch < self.stored.0 {
            return fail(format!(
                "{epoch:?}, and Redis has {:?} for {works} ms",
                self.stored.0
            ));
        }
        let Ok(course) = standing.course(Wish::plain(false)) else {
            if self.redis_runs && works > FOLLOW_MS {
                return fail("a write is refused although Redis answers".into());
            }
            self.running[at].highest = epoch.unwrap_or(Epoch(0));
            return Ok(());
        };
        let Some((heard, asked)) = running.heard else {
            return fail("a write is served before anything was heard".into());
        };
        if course.epoch != heard || course.first != heard.cluster() || !course.only {
            let since = self.now - asked;
            return fail(format!(
                "{course:?}, and {heard:?} was heard last, {since} ms ago"
            ));
        }
        if !self.begun.contains(&course.epoch) {
            return fail(format!("{:?} never was in Redis", course.epoch));
        }
        let cluster = *self.written.entry(course.epoch).or_insert(course.first);
        if cluster != course.first {
            return fail(format!("{:?} has writes in both clusters", course.epoch));
        }
        self.writes += 1;
        self.running[at].highest = epoch.unwrap_or(Epoch(0));
        Ok(())
    }

    /// While all hear Redis, all writes go to one cluster.
    fn check_all(&self) -> Result<(), String> {
        let all_hear = self.redis_runs
            && self
                .running
                .iter()
                .all(|it| it.runs && self.now.saturating_sub(it.works_since.max(self.stored.1)) > FOLLOW_MS);
        let clusters: Vec<_> = (0..INSTANCES).map(|at| self.writes(at)).collect();
        if all_hear && clusters.iter().any(|it| *it != clusters[0]) {
            return Err(format!(
                "at {} ms all hear Redis and write to {clusters:?}",
                self.now
            ));
        }
        Ok(())
    }

    fn all_at(&self, cluster: Cluster) -> Result<(), String> {
        for at in 0..INSTANCES {
            if self.writes(at) != Some(cluster) || self.reads(at) != cluster {
                let (writes, reads) = (self.writes(at), self.reads(at));
                return Err(format!(
                    "in the end {at} has writes at {writes:?}, reads at {reads:?}"
                ));
            }
        }
        Ok(())
    }

    /// Where the writes of an instance go.
    pub(super) fn writes(&self, at: usize) -> Option<Cluster> {
        let standing = self.running[at].instance.standing(self.at(self.now));
        standing
            .course(Wish::plain(false))
            .ok()
            .map(|course| course.first)
    }

    /// Whether its writes wait while their cluster is gone and the other is well.
    pub(super) fn holds_writes(&self, at: usize) -> bool {
        let standing = self.running[at].instance.standing(self.at(self.now));
        standing
            .course(Wish::plain(false))
            .is_ok_and(|course| course.hold)
    }

    /// Where its reads go first.
    pub(super) fn reads(&self, at: usize) -> Cluster {
        self.running[at].instance.standing(self.at(self.now)).reads
    }

    pub(super) fn holder(&self) -> Option<usize> {
        self.running.iter().position(|it| it.instance.holds_lease())
    }

    /// Takes note since when there is too little of a cluster for an instance.
    fn look(&mut self, at: usize) {
        let (sight, now) = (self.sight(at), self.now);
        for cluster in Cluster::ALL {
            let since = &mut self.running[at].low_since[cluster as usize];
            *since = (sight.of(cluster) < SETTINGS.min_healthy).then(|| since.unwrap_or(now));
        }
    }

    /// What an instance has noticed of the clusters, and since when it now knows that there is too little of them.
    fn noticed(&self, at: usize) -> (Sight, [Option<Instant>; 2]) {
        let running = &self.running[at];
        let known = |cluster: Cluster| {
            let since = running.low_since[cluster as usize];
            since.filter(|since| since + running.notices_after <= self.now)
        };
        let share = |cluster: Cluster| match (running.low_since[cluster as usize], known(cluster)) {
            (Some(_), None) => 1.0,
            _ => self.sight(at).of(cluster),
        };
        let sight = Sight {
            primary: share(Cluster::Primary),
            standby: share(Cluster::Standby),
        };
        (
            sight,
            Cluster::ALL.map(|cluster| known(cluster).map(|since| self.at(since))),
        )
    }

    fn sight(&self, at: usize) -> Sight {
        let share = |cluster: Cluster| {
            let reaches = self.running[at].reaches[cluster as usize];
            f64::from(u8::from(reaches)) * f64::from(self.healthy[cluster as usize]) / f64::from(REPLICAS)
        };
        Sight {
            primary: share(Cluster::Primary),
            standby: share(Cluster::Standby),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:6} ms  {}", self.now, what()));
        }
    }
}

fn fresh(at: usize, life: u32) -> Instance {
    Instance::new(format!("{at}.{life}"), SETTINGS, false, 0)
}

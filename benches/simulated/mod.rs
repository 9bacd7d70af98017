//! A simulated upstream: requests, replicas and time are made up, what chooses and judges is the library's.
//!
//! A replica is one interpreter and some slots. Its processor serves in turn; what a request waits for besides (a
//! database, a model) others do not notice. A stream holds its slot long after its first byte, and a little of the
//! processor. Routing sees what it sees in earnest: requests in flight, times to the first byte, failures, probes. No
//! replica is put out altogether, so that a policy shows what it can do alone.
//!
//! All chance comes from the seed, and each request brings its own: every policy meets the same requests.

pub(crate) mod scenarios;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use dify_edge::config::upstreams::BalancePolicy;
use dify_edge::routing::balance::{self, Balance, Candidate};
use dify_edge::routing::health::ewma::{Route, Usual};
use dify_edge::routing::health::score::Parts;
use dify_edge::routing::health::signals::Signals;
use dify_edge::types::outcome::RouteClass;
use dify_edge::types::time::Clock;
use tokio::time::Instant;

/// Mean processor time of a request, in seconds.
const CPU: f64 = 0.005;
/// Median and spread of what it waits for besides.
const WAITS: (f64, f64) = (0.015, 0.5);
/// Slots of a replica that streams may have, as the lanes give them.
const STREAM_SLOTS: usize = 7;
/// Share of the processor that a stream takes.
const STREAM_CPU: f64 = 0.02;
/// A connection that is not made fails after this.
const CONNECT_LIMIT: f64 = 1.0;
/// A request without answer fails after this.
const TOTAL_LIMIT: f64 = 5.0;
/// Attempts of a request, each on another replica.
const ATTEMPTS: u32 = 3;
/// Time from one probe to the next, and for how long one waits.
const PROBES: (f64, f64) = (5.0, 1.0);

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chooser {
    /// A policy of the library.
    Policy(BalancePolicy),
    /// One who knows each replica's true speed, network, failures and work at hand.
    Oracle,
}

/// What a replica is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nature {
    /// By how much all work takes longer.
    pub(crate) slow: f64,
    /// Least and greatest time to it and back, in seconds.
    pub(crate) network: (f64, f64),
    /// Share of connections that are never made.
    pub(crate) fails: f64,
    /// Whether it takes requests and never answers.
    pub(crate) black_hole: bool,
    /// Period of restarts in seconds, and the time for which it is cold after each: five times slower at first.
    pub(crate) restarts: Option<(f64, f64)>,
}

impl Nature {
    /// A replica as it should be.
    pub(crate) const GOOD: Self = Self {
        slow: 1.0,
        network: (0.0005, 0.001),
        fails: 0.0,
        black_hole: false,
        restarts: None,
    };

    fn slow_at(&self, now: f64) -> f64 {
        let cold = self
            .restarts
            .map_or(0.0, |(period, cold)| (1.0 - now % period / cold).max(0.0));
        self.slow * (1.0 + 4.0 * cold)
    }
}

/// What there is to serve, and who serves it.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// For the table.
    pub(crate) name: &'static str,
    /// Whether all replicas are the same.
    pub(crate) equal: bool,
    pub(crate) replicas: Vec<Nature>,
    pub(crate) slots: usize,
    /// Requests per second.
    pub(crate) rate: f64,
    /// The share of them that are streams of 5 to 60 s.
    pub(crate) streams: f64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Result {
    /// 99th percentile of the time to the answer of short requests, in seconds.
    pub p99: f64,
    /// Share of short requests that failed in the end.
    pub(crate) errors: f64,
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub u64);

impl Chance {
    /// In [0, 1).
    pub(crate) fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -(1.0 - self.even()).ln()
    }

    /// Normal with mean 0 and deviation 1.
    fn normal(&mut self) -> f64 {
        (2.0 * self.exponential()).sqrt() * (std::f64::consts::TAU * self.even()).cos()
    }
}

#[derive(Debug, Clone)]
struct Request {
    arrived: f64,
    attempt: u32,
    /// Bits of replicas that failed it.
    avoid: u32,
    cpu: f64,
    waits: f64,
    /// How long it goes on after the first byte; 0 for a short one.
    holds: f64,
    chance: Chance,
}

#[derive(Debug)]
enum Event {
    Arrival,
    Answered {
        request: Request,
        replica: usize,
        asked: f64,
    },
    Failed {
        request: Request,
        replica: usize,
    },
    StreamEnds {
        replica: usize,
    },
    ProbeEnds {
        replica: usize,
    },
    Restarts {
        replica: usize,
    },
}

/// An event with its time. Those of the same time happen in the order in which they were made.
struct Due {
    when: f64,
    number: u64,
    event: Event,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        // The earliest is the greatest, which a heap gives first.
        let later = self
            .when
            .total_cmp(&other.when)
            .then(self.number.cmp(&other.number));
        later.reverse()
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

struct Replica {
    nature: Nature,
    signals: Signals,
    in_flight: usize,
    /// Streams among them.
    streams: usize,
    /// When its processor will have done what it has to do.
    busy_until: f64,
}

/// The simulation.
struct World<'a> {
    scenario: &'a Scenario,
    policy: Option<Box<dyn Balance>>,
    replicas: Vec<Replica>,
    usual: Usual,
    waiting: VecDeque<Request>,
    events: BinaryHeap<Due>,
    /// Events so far.
    made: u64,
    now: f64,
    start: Instant,
    arrivals: Chance,
    times: Vec<f64>,
    failed: usize,
}

/// Lets `scenario` run for `seconds`.
pub(crate) fn run(scenario: &Scenario, chooser: Chooser, seconds: f64, seed: u64) -> Result {
    let replicas = scenario.replicas.iter().map(|nature| Replica {
        nature: *nature,
        signals: Signals::default(),
        in_flight: 0,
        streams: 0,
        busy_until: 0.0,
    });
    let mut world = World {
        scenario,
        policy: match chooser {
            Chooser::Policy(policy) => Some(balance::build(policy, seed)),
            Chooser::Oracle => None,
        },
        replicas: replicas.collect(),
        usual: Usual::default(),
        waiting: VecDeque::new(),
        events: BinaryHeap::new(),
        made: 0,
        now: 0.0,
        // Only differences count.
        start: Clock::System.now().monotonic,
        arrivals: Chance(seed),
        times: Vec::new(),
        failed: 0,
    };
    world.run(seconds);
    world.times.sort_unstable_by(f64::total_cmp);
    Result {
        p99: world.times[world.times.len() * 99 / 100],
        errors: world.failed as f64 / world.times.len() as f64,
    }
}

impl World<'_> {
    fn run(&mut self, seconds: f64) {
        self.at(0.0, Event::Arrival);
        for replica in 0..self.replicas.len() {
            self.at(
                PROBES.0 * replica as f64 / self.replicas.len() as f64,
                Event::ProbeEnds { replica },
            );
            if let Some((period, _)) = self.replicas[replica].nature.restarts {
                self.at(period, Event::Restarts { replica });
            }
        }
        while let Some(due) = self.events.pop().filter(|due| due.when <= seconds) {
            self.now = due.when;
            self.on(due.event);
        }
    }

    fn at(&mut self, when: f64, event: Event) {
        self.made += 1;
        self.events.push(Due {
            when,
            number: self.made,
            event,
        });
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.now)
    }

    fn on(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Arrival => {
                let mut chance = Chance((self.arrivals.even() * 1e18) as u64);
                let next = self.now + self.arrivals.exponential() / self.scenario.rate;
                self.at(next, Event::Arrival);
                let streams = chance.even() < self.scenario.streams;
                let request = Request {
                    arrived: self.now,
                    attempt: 1,
                    avoid: 0,
                    cpu: CPU * chance.exponential(),
                    waits: WAITS.0 * (WAITS.1 * chance.normal()).exp(),
                    holds: if streams { 5.0 + 55.0 * chance.even() } else { 0.0 },
                    chance,
                };
                self.waiting.push_back(request);
            }
            Event::Answered {
                request,
                replica,
                asked,
            } => {
                let time = Duration::from_secs_f64(self.now - asked);
                let short = request.holds == 0.0;
                let class = if short {
                    RouteClass::Listing
                } else {
                    RouteClass::Generation
                };
                let ratio = self.usual.ratio(Route { class, template: "*" }, time);
                self.replicas[replica].signals.answered(ratio, now);
                if short {
                    self.replicas[replica].in_flight -= 1;
                    self.times.push(self.now - request.arrived);
                } else {
                    self.at(self.now + request.holds, Event::StreamEnds { replica });
                }
            }
            Event::Failed { mut request, replica } => {
                let it = &mut self.replicas[replica];
                it.signals.failed(now);
                it.in_flight -= 1;
                it.streams -= usize::from(request.holds > 0.0);
                request.avoid |= 1 << replica;
                request.attempt += 1;
                if request.attempt <= ATTEMPTS && self.now - request.arrived < TOTAL_LIMIT {
                    self.waiting.push_front(request);
                } else if request.holds == 0.0 {
                    self.failed += 1;
                    self.times.push(self.now - request.arrived);
                }
            }
            Event::StreamEnds { replica } => {
                self.replicas[replica].in_flight -= 1;
                self.replicas[replica].streams -= 1;
            }
            Event::ProbeEnds { replica } => {
                let Replica { nature, signals, .. } = &mut self.replicas[replica];
                let well = !nature.black_hole && self.arrivals.clone().even() >= nature.fails;
                signals.probed(well);
                let after = PROBES.0 + if well { 0.0 } else { PROBES.1 };
                self.at(self.now + after, Event::ProbeEnds { replica });
            }
            Event::Restarts { replica } => {
                self.replicas[replica].signals.came_back(now);
                if let Some((period, _)) = self.replicas[replica].nature.restarts {
                    self.at(self.now + period, Event::Restarts { replica });
                }
            }
        }
        // A stream that waits for a slot of its lane holds nobody else up.
        let mut at = 0;
        while let Some(request) = self.waiting.get(at) {
            let (avoid, stream) = (request.avoid, request.holds > 0.0);
            match (self.choose(avoid, stream), stream) {
                (Some(replica), _) => {
                    if let Some(request) = self.waiting.remove(at) {
                        self.serve(request, replica);
                    }
                }
                (None, true) => at += 1,
                (None, false) => break,
            }
        }
    }

    fn choose(&mut self, avoid: u32, stream: bool) -> Option<usize> {
        let now = self.instant();
        let slots = self.scenario.slots;
        let candidates: Vec<_> = self
            .replicas
            .iter()
            .enumerate()
            .filter(|(place, it)| {
                let lane = !stream || it.streams < STREAM_SLOTS;
                lane && it.in_flight < slots && avoid & 1 << place == 0
            })
            .map(|(replica, it)| Candidate {
                replica,
                score: Parts::of(&it.signals.inputs(it.in_flight as f64 / slots as f64, now)).score(),
                in_flight: it.in_flight,
                slots,
            })
            .collect();
        if let Some(policy) = &mut self.policy {
            return policy.choose(&candidates);
        }
        let cost = |candidate: &Candidate| {
            let Replica {
                nature,
                busy_until,
                in_flight,
                ..
            } = &self.replicas[candidate.replica];
            let work = (busy_until - self.now).max(0.0) + nature.slow_at(self.now) * (CPU + WAITS.0);
            let network = (nature.network.0 + nature.network.1) / 2.0;
            let lost = nature.fails * CONNECT_LIMIT + f64::from(u8::from(nature.black_hole)) * TOTAL_LIMIT;
            // Among equals the one with more free slots.
            work + network + lost + 1e-6 * *in_flight as f64
        };
        let best = candidates.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)))?;
        Some(best.replica)
    }

    fn serve(&mut self, mut request: Request, replica: usize) {
        let now = self.now;
        let it = &mut self.replicas[replica];
        it.in_flight += 1;
        it.streams += usize::from(request.holds > 0.0);
        if it.nature.black_hole {
            let end = (request.arrived + TOTAL_LIMIT).max(now);
            return self.at(end, Event::Failed { request, replica });
        }
        if request.chance.even() < it.nature.fails {
            return self.at(now + CONNECT_LIMIT, Event::Failed { request, replica });
        }
        let (least, most) = it.nature.network;
        let network = least + (most - least) * request.chance.even();
        let slow = it.nature.slow_at(now);
        let processor = 1.0 - STREAM_CPU * it.streams as f64;
        it.busy_until = it.busy_until.max(now) + slow * request.cpu / processor;
        let answer = it.busy_until + slow * request.waits + network;
        self.at(
            answer,
            Event::Answered {
                request,
                replica,
                asked: now,
            },
        );
    }
}

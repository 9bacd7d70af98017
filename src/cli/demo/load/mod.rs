//! A closed-loop load: clients that each wait for an answer before they ask again.
//!
//! Readers ask back to back for pages in a Zipf mix, chat users stream an answer, or wait for the
//! whole of it, and think, writers rate or rename and think.
//! The same seed asks in the same order, so that two runs differ only in what stands behind the address.

mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::replay::{Framing, Record};
use crate::types::latency::Histogram;
use crate::types::time::Clock;

pub use client::{Answer, Client, Question};

/// How long a client that met an error waits.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// The clients arrive spread over this time.
const ARRIVAL: Duration = Duration::from_secs(1);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for pages, back to back or after a pause.
    Read,
    /// Streams an answer, then thinks about a second.
    Stream,
    /// Asks for a whole answer of a model or workflow, then thinks about half a second.
    Chat,
    /// Rates or renames, then thinks about half a second.
    Write,
}

impl Kind {
    fn think(self, plan: &Plan) -> Duration {
        match self {
            Self::Read => plan.pause,
            Self::Stream => Duration::from_secs(1),
            Self::Chat | Self::Write => Duration::from_millis(500),
        }
    }
}

/// Who asks, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Clients that read.
    pub readers: usize,
    /// Clients that stream.
    pub chatters: usize,
    /// Clients that wait for whole answers.
    pub askers: usize,
    /// Clients that rate and rename.
    pub writers: usize,
    /// How long a reader thinks.
    pub pause: Duration,
    /// After this nobody asks anything new.
    pub duration: Duration,
    /// What the choices are drawn from.
    pub seed: u64,
}

/// The questions, by kind.
#[derive(Debug)]
pub struct Mix {
    reads: Vec<Question>,
    /// For each read the sum of the weights up to it: 1, 1 + 1/2, 1 + 1/2 + 1/3, …
    weights: Vec<f64>,
    streams: Vec<Question>,
    chats: Vec<Question>,
    writes: Vec<Question>,
}

impl Mix {
    /// Sorts the questions of `records`; health probes are left out. `seed` decides which pages are popular.
    pub fn new(records: &[Record], seed: u64) -> Self {
        let mut mix = Self {
            reads: Vec::new(),
            weights: Vec::new(),
            streams: Vec::new(),
            chats: Vec::new(),
            writes: Vec::new(),
        };
        for record in records.iter().filter(|record| record.request.path != "/health") {
            let Some(question) = Question::of(record) else {
                continue;
            };
            match (record.request.method.as_str(), record.response.framing) {
                ("GET", _) => mix.reads.push(question),
                (_, Framing::Chunked) => mix.streams.push(question),
                _ if generates(&record.request.path) => mix.chats.push(question),
                _ => mix.writes.push(question),
            }
        }
        let mut random = Random(seed);
        for last in (1..mix.reads.len()).rev() {
            mix.reads.swap(last, random.below(last + 1));
        }
        let mut sum = 0.0;
        for rank in 1..=mix.reads.len() {
            sum += 1.0 / rank as f64;
            mix.weights.push(sum);
        }
        mix
    }

    fn choose(&self, kind: Kind, random: &mut Random) -> Option<&Question> {
        match kind {
            Kind::Read => {
                let point = random.unit() * self.weights.last()?;
                self.reads.get(self.weights.partition_point(|sum| *sum <= point))
            }
            Kind::Stream => self.streams.get(random.below(self.streams.len())),
            Kind::Chat => self.chats.get(random.below(self.chats.len())),
            Kind::Write => self.writes.get(random.below(self.writes.len())),
        }
    }
}

/// Whether a POST to `path` has a model or a workflow answer.
fn generates(path: &str) -> bool {
    ["/chat-messages", "/completion-messages", "/workflows/run"]
        .iter()
        .any(|end| path.ends_with(end))
}

/// What the clients of one kind saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// From asking to the end of the answer.
    pub latency: Histogram,
    /// From asking to the first piece of the body.
    pub first: Histogram,
    /// Answers that ended before the time was over.
    pub in_time: u64,
    /// Answers from the memory of a cache.
    pub hits: u64,
    /// Answers that came by another request's fetch.
    pub shared: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
}

impl Seen {
    fn merge(&mut self, other: Self) {
        self.latency.merge(&other.latency);
        self.first.merge(&other.first);
        self.in_time += other.in_time;
        self.hits += other.hits;
        self.shared += other.shared;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// What a whole run saw.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How long clients asked.
    pub duration: Duration,
    /// What readers saw.
    pub reads: Seen,
    /// What chat users saw.
    pub streams: Seen,
    /// What those saw who waited for whole answers.
    pub chats: Seen,
    /// What writers saw.
    pub writes: Seen,
}

impl Outcome {
    /// Answers of every kind.
    pub fn answers(&self) -> u64 {
        self.all().iter().map(|seen| seen.latency.count()).sum()
    }

    /// Failures of every kind.
    pub fn errors(&self) -> u64 {
        self.all().iter().map(|seen| seen.errors).sum()
    }

    /// All kinds.
    pub fn all(&self) -> [&Seen; 4] {
        [&self.reads, &self.streams, &self.chats, &self.writes]
    }
}

/// What a load has seen since it was looked at last.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// From asking to the end, of answers to readers.
    pub latency: Histogram,
    /// Failures of every kind.
    pub errors: u64,
    /// The first of them, in words.
    pub first_error: Option<String>,
}

/// A load that runs, to be looked at meanwhile.
#[derive(Debug, Default)]
pub struct Live {
    answers: AtomicU64,
    moment: Mutex<Moment>,
}

impl Live {
    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// What was seen since this was asked last.
    pub fn moment(&self) -> Moment {
        std::mem::take(&mut *self.moment.lock())
    }

    fn saw(&self, kind: Kind, result: &Result<Answer, String>) {
        let mut moment = self.moment.lock();
        match result {
            Ok(answer) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                if kind == Kind::Read {
                    moment.latency.record(answer.total);
                }
            }
            Err(why) => {
                moment.errors += 1;
                moment.first_error.get_or_insert_with(|| why.clone());
            }
        }
    }
}

/// Runs `plan` against `targets`, over which the clients are spread evenly. `live` can be looked at meanwhile.
pub async fn run(targets: &[SocketAddr], mix: &Arc<Mix>, plan: &Plan, live: &Arc<Live>) -> Outcome {
    // For ever is some years.
    let duration = plan.duration.min(Duration::from_secs(100_000_000));
    let end = Clock::System.now().monotonic + duration;
    let kinds = [
        (Kind::Read, plan.readers),
        (Kind::Stream, plan.chatters),
        (Kind::Chat, plan.askers),
        (Kind::Write, plan.writers),
    ];
    let mut clients = JoinSet::new();
    for (kind, count) in kinds {
        for (number, target) in (0..count).zip(targets.iter().cycle()) {
            let seed = plan.seed ^ ((kind as u64 + 1) << 32 | number as u64);
            let client = Client::new(*target);
            let (mix, live, think) = (mix.clone(), live.clone(), kind.think(plan));
            clients.spawn(async move {
                let seen = lead_life(client, (kind, think), &mix, Random(seed), end, &live).await;
                (kind, seen)
            });
        }
    }
    let mut outcome = Outcome {
        duration: plan.duration,
        ..Outcome::default()
    };
    while let Some(joined) = clients.join_next().await {
        // A client that panicked has nothing to tell; its panic was reported.
        let Ok((kind, seen)) = joined else { continue };
        match kind {
            Kind::Read => outcome.reads.merge(seen),
            Kind::Stream => outcome.streams.merge(seen),
            Kind::Chat => outcome.chats.merge(seen),
            Kind::Write => outcome.writes.merge(seen),
        }
    }
    outcome
}

/// The life of one client until `end`.
async fn lead_life(
    mut client: Client,
    (kind, think): (Kind, Duration),
    mix: &Mix,
    mut random: Random,
    end: Instant,
    live: &Live,
) -> Seen {
    let mut seen = Seen::default();
    // Nobody's users all begin in the same instant.
    let mut pause = ARRIVAL.mul_f64(random.unit());
    loop {
        if !pause.is_zero() {
            tokio::time::sleep_until(end.min(Clock::System.now().monotonic + pause)).await;
        }
        if Clock::System.now().monotonic >= end {
            return seen;
        }
        let Some(question) = mix.choose(kind, &mut random) else {
            return seen;
        };
        pause = think.mul_f64(0.5 + random.unit());
        let result = client.ask(question).await;
        live.saw(kind, &result);
        match result {
            Ok(answer) => {
                seen.latency.record(answer.total);
                seen.first.record(answer.first);
                seen.hits += u64::from(answer.hit);
                seen.shared += u64::from(answer.shared);
                seen.in_time += u64::from(Clock::System.now().monotonic <= end);
            }
            Err(why) => {
                seen.errors += 1;
                seen.first_error.get_or_insert(why);
                pause = pause.max(AFTER_ERROR);
            }
        }
    }
}

/// A generator of numbers that are random enough for a load and the same for the same seed (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to, not including, `limit`; 0 when that is 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.unit() * limit as f64) as usize
    }
}

#[cfg(test)]
mod tests;

//! Clients who may ask: at a steady rate whatever the answers take, and with ids that were created a moment ago, past
//! the proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::Client as Owner;

use crate::client::{Client, bearer, request};
use crate::database::{self, Sample};
use crate::dify::{Dify, PATRON};
use crate::random::Random;

/// Connections.
const PATRONS: u32 = 32;
/// Between two things that are created.
const PAUSE: Duration = Duration::from_millis(200);
/// Tables in which something is created, in turn.
const CREATED: [&str; 5] = [
    "datasets",
    "documents",
    "conversations",
    "upload_files",
    "api_tokens",
];

/// What the patrons saw.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// From when the request was due to its answer, microseconds: of answers from memory, and of all others.
    pub(crate) hits: Vec<u64>,
    pub(crate) others: Vec<u64>,
    /// Refused by the proxy.
    pub(crate) refused: u64,
    /// No success for another reason.
    pub(crate) failed: u64,
    /// Things that were created past the proxy and asked for at once.
    pub(crate) newcomers: u64,
    /// Those of them that were refused at first.
    pub(crate) newcomers_refused: u64,
    /// The longest time until one of these was served, seconds.
    pub(crate) newcomers_waited: f64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Self) {
        self.hits.extend(other.hits);
        self.others.extend(other.others);
        self.refused += other.refused;
        self.failed += other.failed;
        self.newcomers += other.newcomers;
        self.newcomers_refused += other.newcomers_refused;
        self.newcomers_waited = self.newcomers_waited.max(other.newcomers_waited);
    }
}

/// Asks `rate` times a second.
pub(crate) fn run(server: SocketAddr, sample: &Sample, rate: u32, time: Duration) -> Seen {
    let began = Instant::now();
    let mut all = Seen::default();
    thread::scope(|scope| {
        let one = |number: u32| {
            let mut due = began + number * Duration::from_secs(1) / rate;
            let (mut client, mut random, mut seen) = (
                Client::new(server, Ipv4Addr::LOCALHOST),
                Random::new(),
                Seen::default(),
            );
            while due < began + time {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                match client.ask(&usual(sample, &mut random)) {
                    Ok(answer) if (200..300).contains(&answer.status) => {
                        let times = if answer.is_hit {
                            &mut seen.hits
                        } else {
                            &mut seen.others
                        };
                        times.push(due.elapsed().as_micros() as u64);
                    }
                    Ok(answer) if answer.by_guard || answer.status == 429 => seen.refused += 1,
                    Ok(_) | Err(_) => seen.failed += 1,
                }
                due += PATRONS * Duration::from_secs(1) / rate;
            }
            seen
        };
        let patrons: Vec<_> = (0..PATRONS)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        for seen in patrons.into_iter().filter_map(|patron| patron.join().ok()) {
            all.add(seen);
        }
    });
    all
}

/// A request of the legitimate mix: half of it can be stored.
fn usual(sample: &Sample, random: &mut Random) -> Vec<u8> {
    let first_half = |all: &'_ [String], random: &mut Random| all[random.below(all.len() / 2)].clone();
    let app = bearer(&first_half(&sample.app_keys, random));
    let datasets = bearer(&first_half(&sample.dataset_keys, random));
    let dataset = random.of(&sample.datasets).to_owned();
    let user = random.text(12);
    let get = |target: &str, key: &str| request("GET", target, PATRON, key, "");
    match random.below(100) {
        0..60 => get("/v1/parameters", &app),
        60..75 => get(&format!("/v1/conversations?user={user}"), &app),
        75..80 => get(&format!("/v1/datasets/{dataset}"), &datasets),
        80..84 => {
            let document = random.of(&sample.documents);
            get(
                &format!("/v1/datasets/{dataset}/documents/{document}/segments"),
                &datasets,
            )
        }
        84..90 => {
            let conversation = random.of(&sample.conversations);
            get(
                &format!("/v1/conversations/{conversation}/variables?user={user}"),
                &app,
            )
        }
        90..93 => {
            let file = random.of(&sample.files);
            get(&format!("/v1/files/{file}/preview"), &app)
        }
        93..97 => {
            let body = "{\"query\": \"what is it?\"}";
            request(
                "POST",
                &format!("/v1/datasets/{dataset}/retrieve"),
                PATRON,
                &datasets,
                body,
            )
        }
        _ => {
            let body = format!("{{\"query\": \"hi\", \"user\": \"{user}\", \"inputs\": {{}}}}");
            request("POST", "/v1/chat-messages", PATRON, &app, &body)
        }
    }
}

/// Creates things in the database and asks for each at once, and again until it is served.
pub(crate) fn newcomers(
    server: SocketAddr,
    sample: &Sample,
    (runtime, owner): (&Runtime, &Owner),
    dify: &Arc<Dify>,
    time: Duration,
) -> Result<Seen, String> {
    let (began, mut client, mut seen) = (
        Instant::now(),
        Client::new(server, Ipv4Addr::LOCALHOST),
        Seen::default(),
    );
    let mut waiting: Vec<(Vec<u8>, Instant)> = Vec::new();
    let mut tables = CREATED.iter().cycle();
    while began.elapsed() < time {
        if let Some(table) = tables.next() {
            let name = runtime.block_on(database::create(owner, table))?;
            dify.create(name.clone());
            seen.newcomers += 1;
            waiting.push((first_of(sample, table, &name), Instant::now()));
        }
        let mut left = Vec::new();
        for (asked, since) in waiting {
            let is_first = since.elapsed() < PAUSE / 2;
            match client.ask(&asked) {
                Ok(answer) if answer.status == 200 => {
                    if !is_first {
                        seen.newcomers_waited = seen.newcomers_waited.max(since.elapsed().as_secs_f64());
                    }
                }
                Ok(answer) if answer.by_guard || answer.status == 429 => {
                    seen.newcomers_refused += u64::from(is_first);
                    left.push((asked, since));
                }
                Ok(_) | Err(_) => seen.failed += 1,
            }
        }
        waiting = left;
        thread::sleep(PAUSE);
    }
    Ok(seen)
}

/// The first request for something that was just created.
fn first_of(sample: &Sample, table: &str, name: &str) -> Vec<u8> {
    let (app, datasets) = (bearer(&sample.app_keys[0]), bearer(&sample.dataset_keys[0]));
    let dataset = &sample.datasets[0];
    let (target, key) = match table {
        "datasets" => (format!("/v1/datasets/{name}"), datasets),
        "documents" => (
            format!("/v1/datasets/{dataset}/documents/{name}/segments"),
            datasets,
        ),
        "conversations" => (format!("/v1/conversations/{name}/variables?user=abc"), app),
        "upload_files" => (format!("/v1/files/{name}/preview"), app),
        _ => ("/v1/parameters".into(), bearer(name)),
    };
    request("GET", &target, PATRON, &key, "")
}

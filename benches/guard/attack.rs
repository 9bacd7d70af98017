//! Clients at full speed, each on a connection of its own: attackers who guess, or the same number who ask for what is
//! stored.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Answer, Client, bearer, request};
use crate::database::Sample;
use crate::dify::{ATTACKER, PATRON};
use crate::random::Random;

/// What they ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Random keys and ids on every route whose refusal is known.
    Guess,
    /// Random ids with a good key on a route on which it was not recorded how Dify refuses them.
    GuessElsewhere,
    /// Random keys alone.
    GuessKeys,
    /// What is stored, each request with an id of its own as the guesses have.
    Hits,
    /// The very same request for what is stored.
    SameHit,
}

/// What came of it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    /// Answered by the guard in Dify's place.
    pub(crate) refused: u64,
    /// Answered with 429.
    pub(crate) throttled: u64,
    pub(crate) hits: u64,
    /// Connections that broke.
    pub(crate) broken: u64,
    pub(crate) seconds: f64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.throttled += other.throttled;
        self.hits += other.hits;
        self.broken += other.broken;
        self.seconds += other.seconds;
    }

    fn count(&mut self, answer: &Answer) {
        self.requests += 1;
        self.refused += u64::from(answer.by_guard);
        self.throttled += u64::from(answer.status == 429);
        self.hits += u64::from(answer.is_hit);
    }
}

/// Runs so many clients for a time; they may let others go first.
pub(crate) fn run(
    server: SocketAddr,
    sample: &Sample,
    plan: Plan,
    (clients, gives_way): (usize, bool),
    time: Duration,
) -> Tally {
    let began = Instant::now();
    let mut all = Tally::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| scope.spawn(move || one(server, sample, plan, number, gives_way, began + time)))
            .collect();
        for tally in clients.into_iter().filter_map(|client| client.join().ok()) {
            all.add(tally);
        }
    });
    all.seconds = began.elapsed().as_secs_f64();
    all
}

fn one(
    server: SocketAddr,
    sample: &Sample,
    plan: Plan,
    number: usize,
    gives_way: bool,
    until: Instant,
) -> Tally {
    if gives_way {
        give_way();
    }
    // Each has an address of its own, other than the patrons'.
    let own = Ipv4Addr::new(127, 0, 1, 1 + number as u8);
    let (mut client, mut random, mut tally) = (Client::new(server, own), Random::new(), Tally::default());
    let same = hit(sample, "same");
    while Instant::now() < until {
        let asked = match plan {
            Plan::Guess => guess(sample, number, &mut random),
            Plan::GuessElsewhere => {
                let key = bearer(&sample.app_keys[0]);
                let target = format!("/v1/messages/{}/suggested?user=abc", random.uuid());
                request("GET", &target, ATTACKER, &key, "")
            }
            Plan::GuessKeys => {
                let key = bearer(&format!("app-{}", random.text(24)));
                request("GET", "/v1/parameters", ATTACKER, &key, "")
            }
            Plan::Hits => hit(sample, &random.text(24)),
            Plan::SameHit => same.clone(),
        };
        match client.ask(&asked) {
            Ok(answer) => tally.count(&answer),
            Err(_) => {
                tally.broken += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    tally
}

/// Lets the patrons' threads go first on the processor that all share: their times are to show what the proxy does.
fn give_way() {
    let own = std::fs::read_link("/proc/thread-self").ok();
    let id = own.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // Behind the name, which may have anything in it, the 17th word.
    let nice = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(16));
    let nice: i32 = nice.and_then(|nice| nice.parse().ok()).unwrap_or_default();
    // Without it the figures are a little worse.
    let _ = id.map(|id| {
        let mut command = Command::new("renice");
        command.args(["-n", &(nice + 10).to_string(), "-p", &id]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status()
    });
}

fn hit(sample: &Sample, id: &str) -> Vec<u8> {
    let credential = format!("{}\r\nX-Request-Id: {id}", bearer(&sample.app_keys[0]));
    request("GET", "/v1/parameters", PATRON, &credential, "")
}

/// One guess. Each attacker has a key for apps and one for data sets, which he has got somewhere.
fn guess(sample: &Sample, number: usize, random: &mut Random) -> Vec<u8> {
    let own = |keys: &[String]| bearer(&keys[keys.len() - 1 - number % (keys.len() / 2)]);
    let (app, datasets) = (own(&sample.app_keys), own(&sample.dataset_keys));
    let id = random.uuid();
    let dataset = random.of(&sample.datasets);
    let get = |target: String, credential: &str| request("GET", &target, ATTACKER, credential, "");
    match random.below(12) {
        0 => get(
            "/v1/parameters".into(),
            &bearer(&format!("app-{}", random.text(24))),
        ),
        1 => {
            let key = bearer(&format!("app-{}", random.text(24)));
            let body = "{\"query\": \"hi\", \"user\": \"a\", \"inputs\": {}}";
            request("POST", "/v1/chat-messages", ATTACKER, &key, body)
        }
        2 => get(
            "/v1/datasets".into(),
            &bearer(&format!("dataset-{}", random.text(24))),
        ),
        3 => get(format!("/v1/datasets/{id}"), &datasets),
        4 => get(format!("/v1/datasets/{id}/documents"), &datasets),
        5 => get(format!("/v1/datasets/{dataset}/documents/{id}"), &datasets),
        6 => get(
            format!("/v1/datasets/{dataset}/documents/{id}/segments"),
            &datasets,
        ),
        7 => get(format!("/v1/files/{id}/preview"), &app),
        8 => get(format!("/v1/conversations/{id}/variables?user=abc"), &app),
        9 => get(format!("/v1/workflows/run/{id}"), &app),
        10 => get(
            format!("/files/{id}/file-preview?timestamp=1&nonce=2&sign=3"),
            "X-None: 1",
        ),
        _ => get(
            "/api/passport".into(),
            &format!("X-App-Code: {}", random.text(16)),
        ),
    }
}

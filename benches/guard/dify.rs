//! An origin that answers as Dify does, and takes as long: what it does not have it says in Dify's words.
//!
//! As many requests are worked on at once as there are workers, the others wait in order. How long a worker is held is
//! one second divided by what one worker of a real Dify answers in a second. Threads with blocking sockets: the proxy
//! keeps few connections.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use memchr::memmem;
use parking_lot::{Mutex, RwLock};

use crate::client::framing;
use crate::random::Random;

/// Whose a request is: its `User-Agent`.
pub(crate) const ATTACKER: &str = "attacker/1";
pub(crate) const PATRON: &str = "patron/1";

const BAD_KEY: &str =
    "{\"code\": \"unauthorized\", \"message\": \"Access token is invalid\", \"status\": 401}\n";
const NO_DATASET: &str = "{\"code\": \"not_found\", \"message\": \"Dataset not found.\", \"status\": 404}\n";
const NO_DOCUMENT: &str =
    "{\"code\": \"not_found\", \"message\": \"Document not found.\", \"status\": 404}\n";
const NO_FILE: &str =
    "{\"code\": \"file_not_found\", \"message\": \"File not found in message context\", \"status\": 404}\n";
const NO_SIGNED_FILE: &str =
    "{\"code\": \"not_found\", \"message\": \"File not found or signature is invalid\", \"status\": 404}\n";
const NO_RUN: &str = "{\"id\": null, \"workflow_id\": null, \"status\": null, \"inputs\": null, \"outputs\": null, \
     \"error\": null, \"total_steps\": null, \"total_tokens\": null, \"created_at\": null, \"finished_at\": null, \
     \"elapsed_time\": null}\n";
const NO_MESSAGE: &str = "{\"code\": \"not_found\", \"message\": \"Message Not Exists.\", \"status\": 404}\n";
const NO_SITE: &str = "{\"code\": \"not_found\", \"message\": \"The requested URL was not found on the server. If you \
     entered the URL manually please check your spelling and try again. You have requested this URI [/api/passport] but \
     did you mean /api/passport or /api/forgot-password or /api/parameters ?\", \"status\": 404}\n";

/// How long a worker is held, milliseconds: by a request with a bad key, by one for another thing that is missing,
/// and by successes.
const HELD_BY_BAD_KEY: f64 = 2.5;
const HELD_BY_MISSING: f64 = 4.0;
const HELD_BY: [(&str, f64); 6] = [
    ("/v1/parameters", 7.0),
    ("/v1/conversations", 11.0),
    ("/v1/chat-messages", 78.0),
    ("/retrieve", 22.0),
    ("/segments", 26.0),
    ("/v1/datasets", 46.0),
];

/// The origin.
pub(crate) struct Dify {
    pub(crate) address: SocketAddr,
    /// Requests of attackers that reached it.
    pub(crate) attacks: AtomicU64,
    /// All other requests of clients that did.
    pub(crate) patrons: AtomicU64,
    /// Keys and ids that exist, of those that anybody asks for.
    has: RwLock<HashSet<String>>,
    /// When each worker is free.
    workers: Mutex<Vec<Instant>>,
    page: String,
}

impl Dify {
    pub(crate) fn start(workers: usize, has: HashSet<String>) -> std::io::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let dify = Arc::new(Self {
            address: listener.local_addr()?,
            attacks: AtomicU64::new(0),
            patrons: AtomicU64::new(0),
            has: RwLock::new(has),
            workers: Mutex::new(vec![Instant::now(); workers]),
            page: format!("{{\"data\": \"{}\"}}\n", "a".repeat(1000)),
        });
        let serves = dify.clone();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let dify = serves.clone();
                // A connection that fails has ended.
                spawn(move || drop(dify.serve(stream)));
            }
        });
        Ok(dify)
    }

    /// From now on there is such a thing.
    pub(crate) fn create(&self, name: String) {
        self.has.write().insert(name);
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut random, mut buffer, mut filled) = (Random::new(), vec![0; 16 << 10], 0);
        loop {
            let head = loop {
                if let Some(end) = memmem::find(&buffer[..filled], b"\r\n\r\n") {
                    break end + 4;
                }
                match stream.read(&mut buffer[filled..])? {
                    0 => return Ok(()),
                    read => filled += read,
                }
            };
            let (length, _) = framing(&buffer[..head]);
            // All requests of the drill are shorter than the buffer.
            while filled < head + length {
                match stream.read(&mut buffer[filled..])? {
                    0 => return Ok(()),
                    read => filled += read,
                }
            }
            let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
            let answer = self.answer(&text, &mut random);
            stream.write_all(answer.as_bytes())?;
            buffer.copy_within(head + length..filled, 0);
            filled -= head + length;
        }
    }

    fn answer(&self, head: &str, random: &mut Random) -> String {
        let target = head.split(' ').nth(1).unwrap_or_default();
        if !target.starts_with("/v1") && !target.starts_with("/api") && !target.starts_with("/files") {
            return written(200, "{\"status\": \"ok\"}\n");
        }
        let is_attack = head.contains(ATTACKER);
        let counter = if is_attack { &self.attacks } else { &self.patrons };
        counter.fetch_add(1, Relaxed);
        let (status, body) = self.decide(target, head);
        let held = match status {
            401 => HELD_BY_BAD_KEY,
            404 => HELD_BY_MISSING,
            _ => HELD_BY
                .iter()
                .find(|(part, _)| target.contains(part))
                .map_or(7.0, |(_, held)| *held),
        };
        // No two requests take equally long.
        let jitter = 0.8 + 0.4 * random.below(1000) as f64 / 1000.0;
        self.work(Duration::from_secs_f64(held * jitter / 1e3));
        written(status, &body)
    }

    /// Waits for a worker, and for the work.
    fn work(&self, held: Duration) {
        let now = Instant::now();
        let done = {
            let mut workers = self.workers.lock();
            let Some(free) = workers.iter_mut().min() else {
                return;
            };
            *free = now.max(*free) + held;
            *free
        };
        sleep(done - now);
    }

    fn decide(&self, target: &str, head: &str) -> (u16, String) {
        let has = self.has.read();
        let path = target.split('?').next().unwrap_or_default();
        let parts: Vec<_> = path.split('/').skip(1).collect();
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then_some(value)
            })
        };
        let key = field("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let exists = |id: &str| has.contains(id);
        let missing = |body: &str| (404, body.to_owned());
        match parts[..] {
            ["api", ..] => missing(NO_SITE),
            ["files", ..] => missing(NO_SIGNED_FILE),
            ["v1", "datasets", dataset, ..] if !exists(dataset) => missing(NO_DATASET),
            _ if !key.is_some_and(exists) => (401, BAD_KEY.to_owned()),
            ["v1", "datasets", _, "documents", document, ..] if !exists(document) => missing(NO_DOCUMENT),
            ["v1", "messages", message, _] if !exists(message) => missing(NO_MESSAGE),
            ["v1", "files", file, _] if !exists(file) => missing(NO_FILE),
            ["v1", "conversations", conversation, _] if !exists(conversation) => (
                404,
                format!(
                    "{{\"code\": \"not_found\", \"message\": \"Conversation Not Exists. You have requested this URI \
                     [{path}] but did you mean /v1/conversations/<uuid:c_id>/variables ?\", \"status\": 404}}\n"
                ),
            ),
            ["v1", "workflows", "run", run] if !exists(run) => (200, NO_RUN.to_owned()),
            _ => (200, self.page.clone()),
        }
    }
}

fn written(status: u16, body: &str) -> String {
    let reason = match status {
        200 => "OK",
        401 => "UNAUTHORIZED",
        _ => "NOT FOUND",
    };
    let challenge = match status {
        401 => "WWW-Authenticate: Bearer realm=\"api\"\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 {status} {reason}\r\nServer: gunicorn\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{challenge}Access-Control-Allow-Origin: *\r\n\
         Access-Control-Expose-Headers: X-Env, X-Trace-Id, X-Version\r\nX-Version: 1.12.1\r\n\
         X-Env: PRODUCTION\r\n\r\n{body}",
        body.len()
    )
}

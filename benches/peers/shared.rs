//! What the tier costs and gives that instances share: hits in Redis beside hits in memory and beside Redis' own
//! round trip, how soon an edit through one instance is seen at another, and what a restart costs with and without.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::{self, AUTHORIZATION, HOST, Summary};
use crate::origin::Answers;
use crate::rows::Peer;
use crate::server::{Server, Setting};
use crate::{cost, wait_for};

/// Answers stored, and asked for at random.
const STORED: usize = 1000;
/// Edits that are waited for.
const EDITS: usize = 200;
/// The time after a restart that is looked at.
const AFTER: u64 = 10;

/// A Redis of this run.
struct Redis {
    port: u16,
    child: Child,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    fn start() -> Result<Self, String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        drop(listener);
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("redis-server: {error}"))?;
        let redis = Self { port, child };
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(redis);
            }
            sleep(Duration::from_millis(50));
        }
        Err("redis-server does not come up".into())
    }

    /// The 99th percentile of its round trip in milliseconds, of values of this size.
    fn p99(&self, connections: usize, size: usize) -> Result<f64, String> {
        let port = self.port.to_string();
        let output = Command::new("redis-benchmark")
            .args(["-p", &port, "-t", "set,get", "-n", "100000", "--csv"])
            .args(["-c", &connections.to_string(), "-d", &size.to_string()])
            .output()
            .map_err(|error| format!("redis-benchmark: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "test","rps","avg","min","p50","p95","p99","max"
        let line = text.lines().find(|line| line.starts_with("\"GET\""));
        let p99 = line.and_then(|line| line.split(',').nth(6)?.trim_matches('"').parse().ok());
        p99.ok_or_else(|| format!("no figure in {text:?}"))
    }

    fn setting(&self, of: &Setting, local: bool) -> Setting {
        let port = self.port;
        let shared =
            format!("type: redis\n  enable_local: {local}\n  redis: {{ url: \"redis://127.0.0.1:{port}\" }}");
        Setting {
            folder: of.folder.clone(),
            edge: of.edge.clone(),
            cpus: of.cpus.clone(),
            workers: of.workers,
            origin: of.origin,
            shared,
        }
    }
}

/// Prints it all.
pub(crate) fn measure(setting: &Setting, seconds: u64, answers: &Answers) -> Result<(), String> {
    let redis = Redis::start()?;
    hits(setting, &redis, seconds)?;
    edits(&redis.setting(setting, true))?;
    println!("| in the first {AFTER} s after a restart | hits, % | requests upstream |\n|---|--:|--:|");
    restart("memory alone", setting, answers)?;
    restart("with Redis", &redis.setting(setting, true), answers)?;
    println!();
    Ok(())
}

/// A server with everything stored.
fn filled(setting: &Setting) -> Result<Server, String> {
    let server = Server::start(Peer::Edge, setting)?;
    wait_for(&server)?;
    // Redis is used when two beats were answered.
    sleep(Duration::from_secs(2));
    load::fill(&server, STORED).map_err(|error| error.to_string())?;
    sleep(Duration::from_secs(1));
    Ok(server)
}

/// Hits with an id of their own, in memory and in Redis.
fn hits(setting: &Setting, redis: &Redis, seconds: u64) -> Result<(), String> {
    let memory = filled(setting)?;
    let shared = filled(&redis.setting(setting, false))?;
    let cell = |server: &Server, connections: usize| -> Result<(f64, Summary), String> {
        let used = cost::cpu_nanos(server.pid());
        let summary = load::at_random(server, STORED, connections, seconds, &setting.folder)?;
        let micros = (cost::cpu_nanos(server.pid()) - used) as f64 / 1e3 / summary.requests;
        Ok((micros, summary))
    };
    println!(
        "| 1 KiB hits of {STORED} answers, {seconds} s | CPU µs | requests/s | p99, ms |\n|---|--:|--:|--:|"
    );
    let mut rates = Vec::new();
    for (name, server) in [("memory", &memory), ("Redis alone", &shared)] {
        for connections in [64, 16, 8, 4, 2, 1] {
            let (micros, summary) = cell(server, connections)?;
            let rate = summary.requests / summary.seconds;
            println!(
                "| {name}, {connections} connections | {micros:.1} | {rate:.0} | {:.2} |",
                summary.p99
            );
            rates.push((name, connections, micros, rate, summary.p99));
        }
    }
    let most = rates
        .iter()
        .filter(|rate| rate.0 != "memory")
        .map(|rate| rate.3)
        .fold(0.0, f64::max);
    // The most connections with which it does no more than half of what it can.
    let half = rates
        .iter()
        .find(|rate| rate.0 != "memory" && rate.3 <= 0.55 * most);
    let (connections, p99) = half.map_or((1, f64::NAN), |rate| (rate.1, rate.4));
    let own = redis.p99(connections, 1400)?;
    println!("| redis-benchmark GET, {connections} connections | | | {own:.2} |\n");
    let ratio = rates
        .iter()
        .find(|rate| rate.0 != "memory")
        .map_or(0.0, |rate| rate.2)
        / rates[0].2;
    println!("CPU of a hit in Redis over one in memory, 64 connections: {ratio:.2}");
    println!("p99 at half of saturation over Redis' own: {:.2} ms\n", p99 - own);
    Ok(())
}

/// One request with a connection of its own; the answer as it came.
fn ask(server: &Server, line: &str) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.http))?;
        stream.set_nodelay(true)?;
        let fields = "Content-Type: application/json\r\nContent-Length: 0\r\nConnection: close";
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {AUTHORIZATION}\r\n{fields}\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().map_err(|error| error.to_string())
}

/// How long after an edit through one instance was answered another one serves nothing from before it.
#[allow(clippy::disallowed_methods, reason = "it measures real time")]
fn edits(setting: &Setting) -> Result<(), String> {
    let first = filled(setting)?;
    let second = filled(setting)?;
    let from_memory = |answer: &str| answer.contains("; hit") && !answer.contains("detail=l2");
    let mut waits = Vec::with_capacity(EDITS);
    for _ in 0..EDITS {
        while !from_memory(&ask(&second, "GET /v1/parameters?size=1024")?) {}
        let path = "/console/api/apps/6d0f6a3e-7a3c-4a55-9d0c-0a6a5b1f2c11/model-config";
        let answer = ask(&first, &format!("POST {path}"))?;
        let answered = Instant::now();
        if !answer.starts_with("HTTP/1.1 200") {
            return Err(format!("the edit: {answer}"));
        }
        while from_memory(&ask(&second, "GET /v1/parameters?size=1024")?) {}
        waits.push(answered.elapsed());
    }
    waits.sort();
    let at = |share: usize| waits[waits.len() * share / 100].as_secs_f64() * 1e3;
    let longest = waits.last().copied().unwrap_or_default().as_secs_f64() * 1e3;
    println!(
        "An edit through one instance is seen at another after (from its answer, {EDITS} edits): p50 {:.1} ms, \
         p99 {:.1} ms, longest {longest:.1} ms\n",
        at(50),
        at(99),
    );
    Ok(())
}

/// Stops a server with everything stored and puts load on the next one at once.
fn restart(name: &str, setting: &Setting, answers: &Answers) -> Result<(), String> {
    drop(filled(setting)?);
    let server = Server::start(Peer::Edge, setting)?;
    let asked = || answers.requests.load(Ordering::Relaxed);
    wait_for(&server)?;
    let before = asked();
    let summary = load::at_random(&server, STORED, 16, AFTER, &setting.folder)?;
    let fetched = asked() - before;
    let hits = 100.0 * (1.0 - fetched as f64 / summary.requests);
    println!("| {name} | {hits:.2} | {fetched} |");
    Ok(())
}

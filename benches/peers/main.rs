//! Measures dify-edge beside nginx, Varnish, HAProxy and a bare hyper responder, one server at a time on its own core.
//!
//! `run` in this folder installs what is needed and starts this. Servers stay idle between their turns; in each
//! round every row is measured on every server before the next row.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod cost;
mod load;
mod origin;
mod rows;
mod server;
mod shared;
mod table;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::thread::{sleep, spawn};
use std::time::Duration;

use clap::Parser;

use origin::Answers;
use rows::{PEERS, ROWS, Row};
use server::{Server, Setting};
use table::Sample;

/// Compare dify-edge with its peers.
#[derive(Parser)]
struct Args {
    /// How often every row is measured on every server.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// One round of one second.
    #[arg(long)]
    quick: bool,
    /// Processors of the server under test.
    #[arg(long, default_value = "0")]
    server_cpus: String,
    /// Processors of the load and the origin.
    #[arg(long, default_value = "1")]
    load_cpus: String,
    /// The program that is measured.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_dify-edge"))]
    edge: PathBuf,
    /// Be the bare responder on these two ports.
    #[arg(long, hide = true, value_delimiter = ',')]
    responder: Vec<u16>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Connections at rest, for the memory that they take.
const RESTING: usize = 10_000;

fn main() -> ExitCode {
    let args = Args::parse();
    if let [h1, h2] = args.responder[..] {
        origin::serve_bare(h1, h2);
        return ExitCode::FAILURE;
    }
    match measure(&args) {
        Ok((samples, failures)) => {
            println!("{}", table::render(&samples));
            ExitCode::from(u8::from(failures > 0))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(Vec<Sample>, usize), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    // Before there are threads; they and the load inherit it.
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset")
        .args(["-cp", &args.load_cpus, &own])
        .output();
    if !pinned.is_ok_and(|output| output.status.success()) {
        return Err(format!("cannot use processors {}", args.load_cpus));
    }
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener
        .set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    let answers = Answers::new();
    let shared = answers.clone();
    spawn(move || origin::serve_origin(listener, shared));

    let setting = Setting {
        folder,
        edge: args.edge.clone(),
        workers: args.server_cpus.split(',').count(),
        cpus: args.server_cpus.clone(),
        origin: port,
        shared: "type: memory".into(),
    };
    let mut servers = Vec::new();
    for peer in PEERS {
        let server = Server::start(peer, &setting)?;
        wait_for(&server)?;
        servers.push(server);
    }
    if "memory".contains(&args.only) {
        memory(&servers);
    }
    if "entries".contains(&args.only) {
        entries(&setting, args.seconds)?;
    }
    if "shared".contains(&args.only) {
        shared::measure(&setting, args.seconds, &answers)?;
    }
    let (rounds, seconds) = if args.quick {
        (1, 1)
    } else {
        (args.rounds, args.seconds)
    };
    let (mut samples, mut failures) = (Vec::new(), 0);
    for round in 1..=rounds {
        for (index, row) in ROWS
            .iter()
            .enumerate()
            .filter(|(_, row)| row.name.contains(&args.only))
        {
            for server in servers.iter().filter(|server| row.suits(server.peer)) {
                let name = server.peer.name();
                match cell(server, row, seconds, &setting.folder, &answers) {
                    Ok((micros, rate)) => {
                        eprintln!(
                            "round {round}/{rounds}  {}  {name}: {micros:.1} µs, {rate:.0}/s",
                            row.name
                        );
                        samples.push(Sample {
                            row: index,
                            peer: server.peer,
                            micros,
                            rate,
                        });
                    }
                    Err(error) => {
                        eprintln!("FAILED  {}  {name}: {error}", row.name);
                        failures += 1;
                    }
                }
            }
        }
    }
    Ok((samples, failures))
}

/// Prints what each server takes with no client, and with many that rest after one request.
fn memory(servers: &[Server]) {
    println!("| memory, MiB | at the start | with {RESTING} connections at rest |\n|---|--:|--:|");
    for server in servers.iter().filter(|server| server.peer != rows::Peer::Haproxy) {
        let before = cost::memory_kib(server.pid()) / 1024;
        match load::open(server, &ROWS[0], RESTING) {
            Ok(open) => {
                sleep(Duration::from_secs(10));
                let after = cost::memory_kib(server.pid()) / 1024;
                println!("| {} | {before} | {after} |", server.peer.name());
                drop(open);
            }
            Err(error) => println!("| {} | {before} | failed: {error} |", server.peer.name()),
        }
        sleep(Duration::from_secs(2));
    }
    println!();
}

/// Prints what a hit costs with few and with many answers stored, each request with an id of its own.
fn entries(setting: &Setting, seconds: u64) -> Result<(), String> {
    println!("| answers stored | CPU µs per hit, dify-edge | memory, MiB |\n|---|--:|--:|");
    for stored in [1_000, 100_000, 1_000_000] {
        let server = Server::start(rows::Peer::Edge, setting)?;
        wait_for(&server)?;
        load::fill(&server, stored).map_err(|error| error.to_string())?;
        let used = cost::cpu_nanos(server.pid());
        let summary = load::at_random(&server, stored, 64, seconds, &setting.folder)?;
        let micros = (cost::cpu_nanos(server.pid()) - used) as f64 / 1e3 / summary.requests;
        let memory = cost::memory_kib(server.pid()) / 1024;
        println!("| {stored} | {micros:.1} | {memory} |");
    }
    println!();
    Ok(())
}

/// Waits until a server answers.
pub(crate) fn wait_for(server: &Server) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..100 {
        match load::check(server, &ROWS[0]) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        // Only HAProxy, nginx and the like need longer than one turn of this.
        sleep(Duration::from_millis(100));
    }
    Err(format!("{} does not answer: {last}", server.peer.name()))
}

/// CPU microseconds for each request, and requests a second.
fn cell(
    server: &Server,
    row: &Row,
    seconds: u64,
    folder: &Path,
    answers: &Answers,
) -> Result<(f64, f64), String> {
    load::check(server, row)?;
    load::check(server, row)?;
    let origin = || answers.requests.load(Ordering::Relaxed);
    let (asked, used) = (origin(), cost::cpu_nanos(server.pid()));
    let summary = load::run(server, row, seconds, folder)?;
    let (asked, used) = (origin() - asked, cost::cpu_nanos(server.pid()) - used);
    // The check is plain, and scheme is a part of every key: the first request over TLS fetches.
    if row.cached && asked > u64::from(row.tls) {
        return Err(format!("{asked} requests reached the origin"));
    }
    if !row.cached && (asked as f64) < summary.requests {
        return Err(format!(
            "only {asked} of {} requests reached the origin",
            summary.requests
        ));
    }
    Ok((
        used as f64 / 1e3 / summary.requests,
        summary.requests / summary.seconds,
    ))
}

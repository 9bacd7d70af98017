//! The penetration drill: attackers who guess keys and ids at full speed beside clients who may ask, with the guard off,
//! observing and enforcing, over a real database with Dify's tables.
//!
//! `run` in this folder installs what is needed and starts this. The proxy has a core of its own; the database, the
//! origin that answers as Dify does, the attackers and the patrons share the other.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

mod attack;
mod client;
#[path = "../peers/cost.rs"]
#[allow(dead_code, reason = "memory is measured by the peers' bench alone")]
mod cost;
mod database;
mod dify;
mod edge;
mod patrons;
mod random;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::runtime::Runtime;

use attack::{Plan, Tally};
use database::{Database, Sample};
use dify::Dify;
use edge::Edge;
use table::{Cost, Mode, Phase};

/// Attack dify-edge with random ids and keys.
#[derive(Parser)]
struct Args {
    /// Rows in the database, over all tables.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Length of one phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many phases without and with attack in each mode.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// 20000 rows, one round of three seconds.
    #[arg(long)]
    quick: bool,
    /// Only this mode: off, observe or enforce.
    #[arg(long, default_value = "")]
    only: String,
    /// Attackers, each with a connection.
    #[arg(long, default_value_t = 8)]
    attackers: usize,
    /// Legitimate requests a second.
    #[arg(long, default_value_t = 120)]
    rate: u32,
    /// Workers of Dify: that many requests at once.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Processors of the proxy.
    #[arg(long, default_value = "0")]
    server_cpus: String,
    /// Processors of everything else.
    #[arg(long, default_value = "1")]
    load_cpus: String,
    /// The program that is measured.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_dify-edge"))]
    edge: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Connections while the cost of an answer is measured: enough to keep the proxy busy.
const BUSY: usize = 64;

const MODES: [&str; 3] = ["off", "observe", "enforce"];

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.rows, args.rounds, args.seconds) = (20_000, 1, 3);
    }
    match drill(&args) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What stays the same for all modes.
struct Ground<'a> {
    args: &'a Args,
    runtime: Runtime,
    owner: tokio_postgres::Client,
    database: Database,
    sample: Sample,
    dify: Arc<Dify>,
}

fn drill(args: &Args) -> Result<String, String> {
    // Before there are threads; they and the database inherit it.
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset")
        .args(["-cp", &args.load_cpus, &own])
        .output();
    if !pinned.is_ok_and(|output| output.status.success()) {
        return Err(format!("cannot use processors {}", args.load_cpus));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let database = Database::start()?;
    let owner = database.connect(&runtime)?;
    let role = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/guard-role.sql");
    runtime.block_on(Database::fill(&owner, args.rows, &role))?;
    let sample = runtime.block_on(Sample::read(&owner))?;
    let dify = Dify::start(args.workers, sample.all().collect()).map_err(|error| error.to_string())?;
    let ground = Ground {
        args,
        runtime,
        owner,
        database,
        sample,
        dify,
    };
    let (mut modes, mut costs, mut elsewhere) = (Vec::new(), Vec::new(), Phase::default());
    for mode in MODES.into_iter().filter(|mode| mode.contains(&args.only)) {
        let edge = ground.edge(mode)?;
        modes.push(ground.mode(mode, &edge)?);
        if mode == "enforce" {
            costs = ground.costs(&edge);
            elsewhere = ground.elsewhere(&edge);
        }
    }
    Ok(table::render(args.rows, &modes, &costs, &elsewhere))
}

impl Ground<'_> {
    fn edge(&self, mode: &str) -> Result<Edge, String> {
        let values = [
            ("@ORIGIN@", self.dify.address.port().to_string()),
            ("@MODE@", mode.to_owned()),
            ("@DATABASE@", self.database.url("dify_edge_guard")),
        ];
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        let mut edge = Edge::start(&self.args.edge, &self.args.server_cpus, &values)?;
        edge.wait(mode != "off")?;
        Ok(edge)
    }

    fn mode(&self, name: &'static str, edge: &Edge) -> Result<Mode, String> {
        let mut mode = Mode {
            name,
            ..Mode::default()
        };
        // Fills the store, and shows the guard what Dify's answers carry and who may look for what.
        self.phase(edge, false)?;
        for round in 1..=self.args.rounds {
            eprintln!("{name}, round {round}/{}", self.args.rounds);
            mode.calm.add(self.phase(edge, false)?);
            mode.attacked.add(self.phase(edge, true)?);
        }
        let metric = |name: &str, label: &str| edge.metric(name, label);
        mode.false_refusals = metric("dify_edge_guard_false_refusals_total", "")?;
        for (place, result) in ["found", "missing", "no_budget", "failed"].iter().enumerate() {
            let label = format!("result=\"{result}\"");
            mode.lookups[place] = metric("dify_edge_guard_lookups_total", &label)?;
        }
        Ok(mode)
    }

    /// The patrons for a time, with or without the attackers beside them.
    fn phase(&self, edge: &Edge, is_attacked: bool) -> Result<Phase, String> {
        let (server, sample, args) = (edge.http, &self.sample, self.args);
        let time = Duration::from_secs(args.seconds);
        let counts = || [&self.dify.attacks, &self.dify.patrons].map(|count| count.load(Relaxed));
        let (began, before) = (Instant::now(), counts());
        let (attack, seen) = std::thread::scope(|scope| {
            let attackers = is_attacked.then(|| {
                scope.spawn(|| attack::run(server, sample, Plan::Guess, (args.attackers, true), time))
            });
            let owner = (&self.runtime, &self.owner);
            let newcomers = scope.spawn(move || patrons::newcomers(server, sample, owner, &self.dify, time));
            let mut seen = patrons::run(server, sample, args.rate, time);
            seen.add(newcomers.join().map_err(|_| "the newcomers broke")??);
            let attack = attackers.map(|attackers| attackers.join());
            let attack = attack.transpose().map_err(|_| "the attackers broke")?;
            Ok::<(Tally, _), String>((attack.unwrap_or_default(), seen))
        })?;
        let after = counts();
        eprintln!(
            "  {}: {} attacks, {} of them upstream, {} broken; {} patrons upstream",
            if is_attacked { "attacked" } else { "calm" },
            attack.requests,
            after[0] - before[0],
            attack.broken,
            after[1] - before[1],
        );
        Ok(Phase {
            attack,
            seen,
            attacks_upstream: after[0] - before[0],
            patrons_upstream: after[1] - before[1],
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// What attackers who have a key get through where the guard knows no words.
    fn elsewhere(&self, edge: &Edge) -> Phase {
        let before = self.dify.attacks.load(Relaxed);
        let time = Duration::from_secs(self.args.seconds);
        let attack = attack::run(
            edge.http,
            &self.sample,
            Plan::GuessElsewhere,
            (self.args.attackers, false),
            time,
        );
        Phase {
            attack,
            attacks_upstream: self.dify.attacks.load(Relaxed) - before,
            seconds: attack.seconds,
            ..Phase::default()
        }
    }

    /// What refusals and hits cost the proxy, alone.
    fn costs(&self, edge: &Edge) -> Vec<Cost> {
        let args = self.args;
        let mut costs = [Plan::Guess, Plan::GuessKeys, Plan::Hits, Plan::SameHit].map(|plan| Cost {
            plan,
            micros: Vec::new(),
            per_second: 0.0,
        });
        let time = Duration::from_secs(args.seconds.min(3));
        for _ in 0..args.rounds * 2 - 1 {
            for cost in &mut costs {
                let clients = (BUSY, false);
                let used = cost::cpu_nanos(edge.pid());
                let tally = attack::run(edge.http, &self.sample, cost.plan, clients, time);
                let used = cost::cpu_nanos(edge.pid()) - used;
                let micros = used as f64 / 1e3 / tally.requests.max(1) as f64;
                let right = tally.refused.max(tally.hits) as f64 / tally.requests.max(1) as f64;
                eprintln!(
                    "{:?}: {micros:.1} µs, {:.0}/s, {:.2} % as meant",
                    cost.plan,
                    tally.requests as f64 / tally.seconds,
                    right * 100.0
                );
                cost.micros.push(micros);
                cost.per_second = tally.requests as f64 / tally.seconds;
            }
        }
        costs.into()
    }
}

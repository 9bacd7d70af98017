//! The failover drill: what clients of three instances notice while the primary cluster is killed, stopped or cut off,
//! with a real Redis that is lost or cut off, too.
//!
//! `run` in this folder installs what is needed and starts this. Each write has an id and each replica a journal, so that
//! it can be counted how often each was carried out. Everything is a process of this program's own or dify-edge,
//! on loopback addresses or in network namespaces that it makes for itself.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

mod child;
mod instance;
mod judge;
mod load;
mod network;
mod relay;
mod replica;
mod scenario;
mod table;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use judge::Row;
use load::Load;
use scenario::Fault;
use world::{Ground, World};

/// Kill the primary cluster under load, and count.
#[derive(Parser)]
struct Args {
    /// Only scenarios whose name has this in it: killed, stopped, half, partition, cut-off-and-killed, cut-off,
    /// redis-lost, relapse, holder-killed, steered.
    #[arg(long, default_value = "")]
    only: String,
    /// `health_check.interval` of the instances: as it is without configuration, unless it is said.
    #[arg(long, default_value = "5s")]
    interval: String,
    /// Make partitions with relays, even where the machine allows namespaces.
    #[arg(long)]
    relays: bool,
    /// Keep logs and journals, in the directory for temporary files.
    #[arg(long)]
    keep: bool,
    /// The program that is drilled.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_dify-edge"))]
    edge: PathBuf,
    /// Be a replica at this address.
    #[arg(long, hide = true, requires = "journal")]
    replica: Option<SocketAddr>,
    /// Where that one writes down what it has carried out.
    #[arg(long, hide = true)]
    journal: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let (Some(address), Some(journal)) = (args.replica, &args.journal) {
        return match replica::be(address, journal) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let drilled = match runtime {
        Ok(runtime) => runtime.block_on(until_signal(&args)),
        Err(error) => Err(error.to_string()),
    };
    match drilled {
        Ok((text, all_met)) => {
            println!("{text}");
            if all_met {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Whatever ends it, what it has started and made ends with it.
async fn until_signal(args: &Args) -> Result<(String, bool), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        drilled = drill(args) => drilled,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        _ = terminate.recv() => Err("terminated".to_owned()),
    }
}

async fn drill(args: &Args) -> Result<(String, bool), String> {
    let began = Instant::now();
    let is_relayed = args.relays || {
        let allowed = network::may_have_namespaces();
        if let Err(why) = &allowed {
            eprintln!("no network namespaces: {why}");
        }
        allowed.is_err()
    };
    let ground = Ground {
        edge: args.edge.clone(),
        interval: args.interval.clone(),
        is_relayed,
        keeps_logs: args.keep,
    };
    let mut rows = Vec::new();
    for fault in Fault::ALL
        .into_iter()
        .filter(|fault| fault.name().contains(&args.only))
    {
        eprintln!("{} …", fault.name());
        let row = one(&ground, fault)
            .await
            .map_err(|error| format!("{}: {error}", fault.name()))?;
        eprintln!("  {row:?}");
        rows.push(row);
    }
    let (text, all_met) = table::render(&rows);
    let text = format!(
        "Partitions by {}; `health_check.interval` {}; {:.0} s.\n\n{text}",
        network::way(is_relayed),
        args.interval,
        began.elapsed().as_secs_f64()
    );
    Ok((text, all_met))
}

async fn one(ground: &Ground, fault: Fault) -> Result<Row, String> {
    let mut world = World::start(ground, fault.name()).await?;
    let addresses = world.instances.iter().flatten().map(|instance| instance.http);
    let addresses: Vec<_> = addresses.collect();
    let addresses = addresses.try_into().map_err(|_| "an instance is missing")?;
    let load = Load::start(addresses, &replica::exchanges())?;
    let played = scenario::play(&mut world, &load, fault).await;
    if ground.keeps_logs {
        eprintln!("  logs and journals: {}", world.directory.path.display());
    }
    let (moments, told) = (played?, load.end().await);
    judge::judge(fault, moments, &told, &world.journals()?)
}

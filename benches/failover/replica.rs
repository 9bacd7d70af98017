//! A replica: a process that replays captured exchanges and keeps a journal of the writes that it carries out.
//!
//! The program starts itself as one. A write is in the journal before anything of its answer is sent, and what was
//! appended to a file survives `kill -9`.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use dify_edge::cli::demo::replay::{Record, Replay, ReplayOptions, Witness, records};
use parking_lot::Mutex;

use crate::child::{Child, micros};

/// The field that tells writes apart.
pub(crate) const ID: &str = "x-drill-id";

/// The exchanges that are replayed.
pub(crate) fn exchanges() -> Vec<Record> {
    records(include_str!("../../src/cli/demo/exchanges.jsonl"), "")
}

/// Is one, at `address`, until the process that started it is gone.
pub(crate) fn be(address: SocketAddr, journal: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(journal)
        .map_err(failed)?;
    let file = Mutex::new(file);
    let witness = Witness {
        field: ID,
        tell: Arc::new(move |id| {
            // One write each, so that no line is cut when the process is killed.
            let line = format!("{} {id}\n", micros());
            if file.lock().write_all(line.as_bytes()).is_err() {
                // A write that cannot be recorded must not be answered.
                std::process::abort();
            }
        }),
    };
    let options = ReplayOptions {
        address: Some(address),
        fresh_date: true,
        witness: Some(witness),
        ..ReplayOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.map_err(failed)?.block_on(async {
        let replay = Replay::start(exchanges(), options).await.map_err(failed)?;
        println!("{}", replay.address());
        let (gone, is_gone) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            drop(gone);
        });
        let _ = is_gone.await;
        Ok(())
    })
}

/// A running replica.
pub(crate) struct Replica {
    pub(crate) child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    journal: PathBuf,
}

/// One line of a journal: when, in microseconds of Unix time, and which write.
pub(crate) type Entry = (u64, String);

impl Replica {
    /// Starts one by `command`, which runs this program where the replica is to be.
    pub(crate) fn start(mut command: Command, address: SocketAddr, journal: PathBuf) -> Result<Self, String> {
        command
            .args(["--replica", &address.to_string(), "--journal"])
            .arg(&journal);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Child::start(&mut command)?;
        let mut line = String::new();
        if let Some(stdout) = &mut child.process().stdout {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let told = line.trim().parse();
        Ok(Self {
            child,
            address: told.map_err(|_| format!("a replica did not start at {address}"))?,
            journal,
        })
    }

    /// The writes that it has carried out, in order.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, String> {
        let text = std::fs::read_to_string(&self.journal).map_err(|error| error.to_string())?;
        let entry = |line: &str| {
            let (at, id) = line.split_once(' ')?;
            Some((at.parse().ok()?, id.to_owned()))
        };
        let entries: Option<Vec<Entry>> = text.lines().map(entry).collect();
        entries.ok_or_else(|| "a journal has a line that is none".to_owned())
    }
}

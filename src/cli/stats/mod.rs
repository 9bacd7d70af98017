//! `stats`: the cache of a running proxy in numbers, once or again and again.
//!
//! Asks `/cache/stats` of the administrative listener; `table` lays out the answer.

mod table;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};
use tokio::time::MissedTickBehavior;

use super::ask::{self, AdminArgs, NoContent};
use super::{FAILED, INVALID, OK, block_on, fail, try_print};
use crate::types::time::Clock;

/// To the first place of the screen, and nothing below it.
const FRESH_SCREEN: &str = "\x1b[H\x1b[J";

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Look again every so many seconds, 2 when none are given, and show rates since the last look; Ctrl-C ends it.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        conflicts_with = "json"
    )]
    watch: Option<u64>,
    /// Write the answer of the listener as it is, JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub fn run(args: &StatsArgs) -> ExitCode {
    let address = match args.admin.address() {
        Ok(address) => address,
        Err(error) => return fail(INVALID, &error),
    };
    if let Some(seconds) = args.watch {
        return block_on(until_ctrl_c(watch(address, Duration::from_secs(seconds))));
    }
    let text = look(address).and_then(|content| match args.json {
        true => Ok(content),
        false => Ok(table::table(&understood(address, &content)?, None).into_bytes()),
    });
    match text {
        Ok(text) => {
            let _ = try_print(&text);
            ExitCode::from(OK)
        }
        Err((code, why)) => fail(code, &why),
    }
}

async fn until_ctrl_c(work: impl Future<Output = Result<(), NoContent>>) -> ExitCode {
    let ended = tokio::select! {
        ended = work => ended,
        signal = tokio::signal::ctrl_c() => signal.map_err(|error| (FAILED, error.to_string())),
    };
    match ended {
        Ok(()) => ExitCode::from(OK),
        Err((code, why)) => fail(code, &why),
    }
}

/// Shows the table every `period` until nobody reads it any more.
async fn watch(address: SocketAddr, period: Duration) -> Result<(), NoContent> {
    let start = if std::io::stdout().is_terminal() {
        FRESH_SCREEN
    } else {
        ""
    };
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        ticks.tick().await;
        // Not here, where it would hold up Ctrl-C.
        let content = tokio::task::spawn_blocking(move || look(address))
            .await
            .map_err(|error| (FAILED, error.to_string()))??;
        let at = Clock::System.now().monotonic;
        let stats = understood(address, &content)?;
        let last = before
            .as_ref()
            .map(|(stats, then)| (stats, at.saturating_duration_since(*then)));
        let text = format!(
            "{start}{address}, every {period:?}\n\n{}\n",
            table::table(&stats, last)
        );
        if try_print(text.as_bytes()).is_err() {
            return Ok(());
        }
        before = Some((stats, at));
    }
}

fn look(address: SocketAddr) -> Result<Vec<u8>, NoContent> {
    ask::content(address, ask::get(address, "/cache/stats"))
}

fn understood(address: SocketAddr, content: &[u8]) -> Result<Map<String, Value>, NoContent> {
    serde_json::from_slice(content).map_err(|error| {
        let why = format!("{address}: what it says of the cache is not understood: {error}");
        (FAILED, why)
    })
}

//! `stats`: the cache of a running proxy in numbers, once or again and again.
//!
//! Asks `/cache/stats` of the administrative listener; `table` lays out the answer.

mod table;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::ask::{self, AdminArgs, NoContent};
use super::{FAILED, INVALID, OK, fail, try_print, watch};

/// What is asked for.
const TARGET: &str = "/cache/stats";

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
        return watch::run(address, TARGET, Duration::from_secs(seconds), drawing(address));
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

/// Draws a look with the rates since the one before.
fn drawing(address: SocketAddr) -> impl FnMut(&[u8], Instant) -> Result<String, NoContent> {
    let mut before: Option<(Map<String, Value>, Instant)> = None;
    move |content, at| {
        let stats = understood(address, content)?;
        let last = before
            .as_ref()
            .map(|(stats, then)| (stats, at.saturating_duration_since(*then)));
        let text = table::table(&stats, last);
        before = Some((stats, at));
        Ok(text)
    }
}

fn look(address: SocketAddr) -> Result<Vec<u8>, NoContent> {
    ask::content(address, ask::get(address, TARGET))
}

fn understood(address: SocketAddr, content: &[u8]) -> Result<Map<String, Value>, NoContent> {
    serde_json::from_slice(content).map_err(|error| {
        let why = format!("{address}: what it says of the cache is not understood: {error}");
        (FAILED, why)
    })
}

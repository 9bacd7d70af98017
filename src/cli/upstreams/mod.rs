//! `upstreams`: the replicas of a running proxy and how they fare, once or again and again.
//!
//! Asks `/upstreams` of the administrative listener; `table` lays out the answer, `failover` what it says of
//! that.

mod failover;
mod table;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ask::{self, AdminArgs, NoContent};
use super::{FAILED, INVALID, OK, fail, try_print, watch};

/// What is asked for.
const TARGET: &str = "/upstreams";

/// Arguments of `upstreams`.
#[derive(Debug, Args)]
pub struct UpstreamsArgs {
    /// Look again every so many seconds, 1 when none are given; Ctrl-C ends it.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
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
pub fn run(args: &UpstreamsArgs) -> ExitCode {
    let address = match args.admin.address() {
        Ok(address) => address,
        Err(error) => return fail(INVALID, &error),
    };
    if let Some(seconds) = args.watch {
        let draw = move |content: &[u8], _| laid_out(address, content);
        return watch::run(address, TARGET, Duration::from_secs(seconds), draw);
    }
    let text = ask::content(address, ask::get(address, TARGET)).and_then(|content| match args.json {
        true => Ok(content),
        false => Ok(laid_out(address, &content)?.into_bytes()),
    });
    match text {
        Ok(text) => {
            let _ = try_print(&text);
            ExitCode::from(OK)
        }
        Err((code, why)) => fail(code, &why),
    }
}

fn laid_out(address: SocketAddr, content: &[u8]) -> Result<String, NoContent> {
    let upstreams: Vec<table::Upstream> = serde_json::from_slice(content).map_err(|error| {
        let why = format!("{address}: what it says of its upstreams is not understood: {error}");
        (FAILED, why)
    })?;
    Ok(table::table(&upstreams))
}

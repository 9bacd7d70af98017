//! `health`: asks `/ready` of a running proxy; for containers, which have no curl.

use std::process::ExitCode;

use clap::Args;

use super::ask::{self, AdminArgs};
use super::{FAILED, INVALID, OK, fail, print};

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub fn run(args: &HealthArgs) -> ExitCode {
    let address = match args.admin.address() {
        Ok(address) => address,
        Err(error) => return fail(INVALID, &error),
    };
    match ask::get(address, "/ready") {
        Ok((200, _)) => {
            print("ready\n");
            ExitCode::from(OK)
        }
        Ok((status, _)) => fail(FAILED, &format!("{address} is not ready: status {status}")),
        Err(error) => fail(FAILED, &format!("{address}: {error}")),
    }
}

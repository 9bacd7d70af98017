//! `health`: asks `/ready` of a running proxy; for containers, which have no curl.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

use super::{FAILED, INVALID, OK, ask, fail, print};
use crate::config::AdminConfig;

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The administrative listener [default: DIFY_EDGE__ADMIN__ADDRESS, or 127.0.0.1:9901].
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

/// Runs the command.
pub fn run(args: &HealthArgs) -> ExitCode {
    let address = match (args.admin, std::env::var("DIFY_EDGE__ADMIN__ADDRESS")) {
        (Some(address), _) => address,
        (None, Ok(text)) if !text.is_empty() => match text.parse() {
            Ok(address) => address,
            Err(error) => {
                return fail(
                    INVALID,
                    &format!("environment DIFY_EDGE__ADMIN__ADDRESS: {error}"),
                );
            }
        },
        _ => AdminConfig::default().address,
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

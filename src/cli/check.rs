//! `check`: says whether a configuration is valid, what in it has no effect, and what it comes down to.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, INVALID, OK, complain, fail, print};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the effective configuration as YAML, with the origin of each value behind it.
    #[arg(long)]
    print: bool,
}

/// Runs the command.
pub fn run(args: &CheckArgs) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(error) => return fail(INVALID, &error.to_string()),
    };
    for warning in loaded.warnings() {
        complain(&format!("warning: {warning}"));
    }
    if args.print {
        print(&loaded.print());
    } else {
        print("valid\n");
    }
    ExitCode::from(OK)
}

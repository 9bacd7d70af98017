//! `completions`: a script that lets a shell complete this program's command line.

use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::{Cli, OK, print};

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to read the script.
    shell: clap_complete::Shell,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dify-edge", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::from(OK)
}

//! The command line: one file per command, each turning its arguments into calls of the library.
//!
//! Nothing of the proxy imports this. What people read goes to standard output, errors to standard error, and the
//! outcome is the exit code that [`EXIT_CODES`] promises.

mod ask;
pub mod check;
pub mod completions;
pub mod demo;
pub mod explain;
pub mod failover;
mod grid;
pub mod health;
pub mod purge;
pub mod serve;
pub mod stats;
pub mod upstreams;
mod watch;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::load::{ConfigError, ENVIRONMENT_PREFIX, Flags, Loaded, Sources, load};

/// Exit code: it ran, and ended as asked.
const OK: u8 = 0;
/// Exit code: it could not start, or failed while running.
const FAILED: u8 = 1;
/// Exit code: the command line or the configuration is not valid.
const INVALID: u8 = 2;

/// What the exit codes mean; shown by `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  done, or drained and stopped after SIGTERM or SIGINT
  1  could not start (an address is taken), failed while running, or stopped by a second signal
  2  the command line or the configuration is not valid

Settings: defaults < file < environment (DIFY_EDGE__CACHE__TTL_SECONDS=600) < flags.";

/// A caching reverse proxy that stands in front of dify-api.
#[derive(Debug, Parser)]
#[command(name = "dify-edge", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    #[command(after_help = EXIT_CODES)]
    Serve(serve::ServeArgs),
    /// Say whether a configuration is valid; name file, line and key of what is not.
    #[command(after_help = EXIT_CODES)]
    Check(check::CheckArgs),
    /// Tell what would happen to a request and why: route, caller, key, lifetime, tags.
    #[command(after_help = EXIT_CODES)]
    Explain(explain::ExplainArgs),
    /// Ask a running proxy whether it is ready; exit 0 when it is, 1 otherwise.
    Health(health::HealthArgs),
    /// End stored answers of a running proxy: by key, tag, route or principal, or all.
    #[command(after_help = EXIT_CODES)]
    Purge(purge::PurgeArgs),
    /// Show the cache of a running proxy in numbers.
    Stats(stats::StatsArgs),
    /// Show the upstreams of a running proxy: each replica's score, breaker, load, times and last error, and
    /// which cluster has the writes.
    Upstreams(upstreams::UpstreamsArgs),
    /// Have the writes of an upstream go to its standby or its primary cluster, or leave that to health again.
    #[command(after_help = EXIT_CODES)]
    Failover(failover::FailoverArgs),
    /// Show what it does: replayed exchanges with a real dify-api, straight and through the proxy, in a table.
    Demo(demo::DemoArgs),
    /// Write a completion script for a shell to standard output.
    Completions(completions::CompletionsArgs),
}

/// Runs the command that `arguments` (with the program's name first) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Also --help and --version, which go to standard output with exit code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(INVALID));
        }
    };
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Purge(args) => purge::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Upstreams(args) => upstreams::run(&args),
        Command::Failover(args) => failover::run(&args),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Where the configuration comes from; the same for every command that needs one.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file, YAML or JSON.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replica of the upstream `api`, like http://127.0.0.1:5001; may be repeated. Replaces those of the file.
    #[arg(long, value_name = "URL")]
    upstream: Vec<String>,
    /// Address for clients, like 127.0.0.1:8080; may be repeated. Replaces those of the file.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Address of the administrative listener, like 127.0.0.1:9901.
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Redis that all instances share, like redis://127.0.0.1:6379/0; turns `cache.type: redis` on.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Loaded, ConfigError> {
        // What is not UTF-8 becomes U+FFFD, and is then refused where it is not valid.
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .collect();
        load(&Sources {
            file: self.config.clone(),
            environment,
            flags: Flags {
                upstream: self.upstream.clone(),
                listen: self.listen.clone(),
                admin: self.admin.clone(),
                redis: self.redis.clone(),
            },
        })
    }
}

/// Runs `work` on a multi-threaded runtime to its end. What is left on the runtime then is not waited for.
fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(FAILED, &format!("cannot start: {error}")),
    }
}

/// Writes to standard output. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) {
    let _ = try_print(text.as_bytes());
}

/// Writes to standard output; for who goes on writing as long as somebody reads.
fn try_print(text: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

/// Writes a line to standard error.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Says why it is over.
fn fail(code: u8, why: &str) -> ExitCode {
    for line in why.lines() {
        complain(&format!("error: {line}"));
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

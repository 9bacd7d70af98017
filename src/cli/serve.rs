//! `serve`: runs the proxy until a signal, then drains it.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigArgs, FAILED, INVALID, OK, block_on, fail};
use crate::app::{Edge, StartError};
use crate::config::load::Loaded;
use crate::telemetry::logging;
use crate::types::time::Clock;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> ExitCode {
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(error) => return fail(INVALID, &error.to_string()),
    };
    // Held to the end: dropping it writes what is queued.
    let _log = match logging::init(&loaded.config.log) {
        Ok(guard) => guard,
        Err(error) => return fail(FAILED, &error),
    };
    block_on(serve(loaded))
}

async fn serve(loaded: Loaded) -> ExitCode {
    for warning in loaded.warnings() {
        tracing::warn!("{warning}");
    }
    for (name, upstream) in &loaded.config.upstreams {
        let replicas = upstream.places();
        let from = loaded.origin_of(&format!("upstreams.{name}.replicas"));
        tracing::info!(name, ?replicas, from, "upstream");
    }
    // Before anything is started, so that a signal during the start is not lost.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED, &format!("cannot take signals: {error}")),
    };
    let drain_timeout = loaded.config.drain_timeout.0;
    let edge = match Edge::start(loaded.config, Clock::System).await {
        Ok(edge) => edge,
        Err(error) => {
            return fail(exit_code(&error), &error.to_string());
        }
    };
    for address in &edge.addresses {
        tracing::info!(%address, "listening");
    }
    tracing::info!(address = %edge.admin, "administrative listener");

    let name = signals.next().await;
    tracing::info!(signal = name, limit = ?drain_timeout, "draining; a second signal stops at once");
    tokio::select! {
        cut = edge.drain(drain_timeout) => {
            if cut == 0 {
                tracing::info!("stopped");
            } else {
                tracing::warn!(connections = cut, "stopped; the time was up for some connections");
            }
            ExitCode::from(OK)
        }
        name = signals.next() => {
            tracing::warn!(signal = name, "stopped before the drain was complete");
            ExitCode::from(FAILED)
        }
    }
}

/// A taken address may be free a minute later; a wrong configuration stays wrong.
fn exit_code(error: &StartError) -> u8 {
    match error {
        StartError::Bind { .. } => FAILED,
        StartError::Tls(_) | StartError::Config(_) => INVALID,
    }
}

/// The signals that end the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_a_failure_and_a_wrong_configuration_is_invalid() {
        let taken = StartError::Bind {
            address: ([127, 0, 0, 1], 80).into(),
            source: std::io::ErrorKind::AddrInUse.into(),
        };
        assert_eq!(exit_code(&taken), 1);
        assert_eq!(exit_code(&StartError::Tls("no key".into())), 2);
        assert_eq!(exit_code(&StartError::Config("no".into())), 2);
    }
}

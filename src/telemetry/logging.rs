//! Sets up the log: lines on standard output, as text or JSON, filtered by `log.level`.
//!
//! A writer thread of its own takes the lines from a bounded queue; when the reader of standard output is slow,
//! lines are dropped rather than requests held up.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait for the writer; at some 200 bytes each about 3 MiB.
const QUEUED_LINES: usize = 16 * 1024;

/// Keeps the log going. Dropping it writes what is queued and ends the log.
#[derive(Debug)]
pub struct LogGuard {
    _writer: WorkerGuard,
}

/// Starts the log of this process.
///
/// # Errors
/// When `config.level` is not a filter, or when the process has a log already.
pub fn init(config: &LogConfig) -> Result<LogGuard, String> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|error| format!("log.level: {error}"))?;
    let stdout = std::io::stdout();
    let ansi = stdout.is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES)
        .finish(stdout);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(ansi).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(LogGuard { _writer: guard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_no_filter_is_refused() {
        let config = LogConfig {
            level: "dify_edge=loud".into(),
            ..LogConfig::default()
        };
        assert!(init(&config).unwrap_err().starts_with("log.level: "));
    }
}

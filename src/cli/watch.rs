//! Shows what a running proxy says again and again, until Ctrl-C or until nobody reads it any more.
//!
//! On a terminal each look takes the place of the last; elsewhere they follow one another.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::ask::{self, NoContent};
use super::{FAILED, OK, block_on, fail, try_print};
use crate::types::time::Clock;

/// To the first place of the screen, and nothing below it.
const FRESH_SCREEN: &str = "\x1b[H\x1b[J";

/// Asks for `target` every `period` and shows what `draw` makes of the answer, which came at the time it is given.
pub(super) fn run(
    address: SocketAddr,
    target: &'static str,
    period: Duration,
    draw: impl FnMut(&[u8], Instant) -> Result<String, NoContent>,
) -> ExitCode {
    block_on(until_ctrl_c(keep_looking(address, target, period, draw)))
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

async fn keep_looking(
    address: SocketAddr,
    target: &'static str,
    period: Duration,
    mut draw: impl FnMut(&[u8], Instant) -> Result<String, NoContent>,
) -> Result<(), NoContent> {
    let start = if std::io::stdout().is_terminal() {
        FRESH_SCREEN
    } else {
        ""
    };
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Not here, where it would hold up Ctrl-C.
        let look = move || ask::content(address, ask::get(address, target));
        let content = tokio::task::spawn_blocking(look)
            .await
            .map_err(|error| (FAILED, error.to_string()))??;
        let shown = draw(&content, Clock::System.now().monotonic)?;
        let text = format!("{start}{address}, every {period:?}\n\n{shown}\n");
        if try_print(text.as_bytes()).is_err() {
            return Ok(());
        }
    }
}

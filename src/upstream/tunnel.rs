//! Both sides joined after `101 Switching Protocols`: bytes go both ways until one side ends.
//!
//! It keeps the slot and counts as a request in flight as long as it lasts, and it does not last for ever when
//! nothing moves.

use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::response_body::Held;
use crate::types::time::Clock;

/// A tunnel in which nothing moved for this long is closed.
const IDLE: Duration = Duration::from_secs(3600);
/// How long one direction may go on after the other has ended.
const LINGER: Duration = Duration::from_secs(5);
/// How long the client's side may take to switch.
const SWITCH: Duration = Duration::from_secs(10);
const BUFFER: usize = 16 * 1024;

/// Joins `client` and `upstream`; `held` (connection, slot) is kept until the tunnel ends.
pub(super) async fn join(client: OnUpgrade, upstream: OnUpgrade, held: Held, clock: Clock) {
    let both = async { tokio::try_join!(client, upstream) };
    match timeout(SWITCH, both).await {
        Ok(Ok((client, upstream))) => run(client, upstream, &clock).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection did not switch protocols"),
        Err(_) => tracing::debug!("a connection took too long to switch protocols"),
    }
    drop(held);
}

async fn run(client: Upgraded, upstream: Upgraded, clock: &Clock) {
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_upstream, mut to_upstream) = tokio::io::split(TokioIo::new(upstream));
    let moved = Mutex::new(clock.now().monotonic);
    let mut up = std::pin::pin!(copy(&mut from_client, &mut to_upstream, &moved, clock));
    let mut down = std::pin::pin!(copy(&mut from_upstream, &mut to_client, &moved, clock));
    tokio::select! {
        () = &mut up => { let _ = timeout(LINGER, down).await; }
        () = &mut down => { let _ = timeout(LINGER, up).await; }
        () = stands_still(&moved, clock) => {}
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    moved: &Mutex<Instant>,
    clock: &Clock,
) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        *moved.lock() = clock.now().monotonic;
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn stands_still(moved: &Mutex<Instant>, clock: &Clock) {
    loop {
        let limit = *moved.lock() + IDLE;
        if limit <= clock.now().monotonic {
            return;
        }
        sleep_until(limit).await;
    }
}

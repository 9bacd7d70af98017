//! What the tests stand on: a client and an origin that say exactly what is on the wire, and the proxy between them.
//!
//! Nothing here waits for time to pass: every wait is for a condition, and is given up after [`PATIENCE`].

pub mod captures;
pub mod child;
pub mod client;
pub mod dns;
pub mod edge;
pub mod faulty;
pub mod fleet;
pub mod grpc;
pub mod http2;
pub mod known;
pub mod metrics;
pub mod origin;
pub mod postgres;
pub mod raw;
pub mod redis;
pub mod wire;

use std::future::Future;
use std::time::Duration;

/// After this long a condition that has not come true is a failed test.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for `future`, at most for [`PATIENCE`]; `what` says what did not happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Asks again and again until `condition` gives a value; lets everything else run in between.
pub async fn eventually<T, F>(what: &str, condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(what, asking(condition)).await
}

/// The same for what others do in their own time, which may be several times as long.
pub async fn at_last<T, F>(what: &str, condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    match tokio::time::timeout(6 * PATIENCE, asking(condition)).await {
        Ok(value) => value,
        Err(_) => panic!("waited a minute in vain: {what}"),
    }
}

async fn asking<T, F>(mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        tokio::task::yield_now().await;
    }
}

//! What the tests stand on: a client and an origin that say exactly what is on the wire, and the proxy between them.
//!
//! Nothing here waits for time to pass: every wait is for a condition, and is given up after [`PATIENCE`].

pub mod captures;
pub mod child;
pub mod client;
pub mod edge;
pub mod http2;
pub mod metrics;
pub mod origin;
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
pub async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(what, async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

//! Looks names up. A trait, so that a test can move a name to another address.
//!
//! When to ask, and what to keep when there is no answer, is decided in `replica`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

/// A look-up under way.
pub(super) type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Turns a name into addresses.
pub(super) trait Resolve: Send + Sync {
    /// Looks up `host`; every address gets `port`.
    fn lookup(&self, host: &str, port: u16) -> Lookup;
}

/// Asks the operating system (`/etc/hosts`, DNS).
#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn lookup(&self, host: &str, port: u16) -> Lookup {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

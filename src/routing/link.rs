//! The connection to Redis that failover and the memory of owners share: one, or none at the moment.
//!
//! As in the cache, fred never connects again by itself: a connection that is lost is followed by another, which may
//! lead to another server. Who asks has its own deadline, and goes on without Redis when there is no client.

use std::time::Duration;

use arc_swap::ArcSwapOption;
use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config::redis::RedisServers;

/// The longest that connecting may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Pauses between tries to connect: the first, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_millis(400);

/// See the module.
pub(super) struct Link {
    servers: RedisServers,
    client: ArcSwapOption<Client>,
}

impl Link {
    /// Connects to nothing yet.
    pub(super) fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            client: ArcSwapOption::empty(),
        }
    }

    /// What commands go through, while there is a connection.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.load().as_deref().cloned()
    }

    /// Connects, again and again, for ever.
    pub(super) async fn keep(&self) {
        let (mut pause, mut said) = (FIRST_PAUSE, false);
        for attempt in 0.. {
            let why = match self.serve(attempt).await {
                Served::Lost(why) => {
                    (pause, said) = (FIRST_PAUSE, false);
                    why
                }
                Served::NotConnected(why) => why,
            };
            if !std::mem::replace(&mut said, true) {
                tracing::warn!("routing has no connection to Redis: {why}; it is tried again");
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Uses one connection until it is lost.
    async fn serve(&self, attempt: usize) -> Served {
        let client = match self.servers.client(attempt) {
            Ok(client) => client,
            Err(error) => return Served::NotConnected(error.to_string()),
        };
        let mut connection = AbortOnDropHandle::new(client.connect());
        match timeout(CONNECT, client.wait_for_connect()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Served::NotConnected(error.to_string()),
            Err(_) => return Served::NotConnected("no answer in time".to_owned()),
        }
        tracing::info!(servers = self.servers.names(), "routing is connected to Redis");
        // Whoever drops this future closes the connection with it.
        let _open = Open(self);
        self.client.store(Some(client.into()));
        Served::Lost(match (&mut connection).await {
            Ok(Err(error)) => error.to_string(),
            _ => "closed".to_owned(),
        })
    }
}

enum Served {
    NotConnected(String),
    Lost(String),
}

/// Takes the client away when its connection ends.
struct Open<'a>(&'a Link);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.client.store(None);
    }
}

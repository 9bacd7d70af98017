//! The connection to Redis that failover and the memory of owners share: one, or none at the moment.
//!
//! As in the cache, fred never connects again by itself: a connection that is lost is followed by another, which may
//! lead to another server. Who asks has its own deadline, and goes on without Redis when there is no client. A connection
//! whose packets vanish is not lost by itself for minutes: when nobody gets a reply any more, it is made anew.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config::redis::RedisServers;

/// The longest that connecting may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Pauses between tries to connect: the first, doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_millis(400);
/// When so many in a row have given up waiting for a reply, there is nobody at the other end.
const SILENCES: u32 = 3;

/// See the module.
pub(super) struct Link {
    servers: RedisServers,
    client: ArcSwapOption<Client>,
    /// How many in a row have given up.
    silences: AtomicU32,
    /// Wakes who is to connect anew.
    gave_up: Notify,
}

impl Link {
    /// Connects to nothing yet.
    pub(super) fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            client: ArcSwapOption::empty(),
            silences: AtomicU32::new(0),
            gave_up: Notify::new(),
        }
    }

    /// What commands go through, while there is a connection.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.load().as_deref().cloned()
    }

    /// Waits for the reply to a command. Whoever drops this before there is one says that it has given up.
    pub(super) async fn reply<T>(&self, command: impl Future<Output = T>) -> T {
        let mut silence = Silence(Some(self));
        let reply = command.await;
        self.silences.store(0, Ordering::Relaxed);
        silence.0 = None;
        reply
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
        self.silences.store(0, Ordering::Relaxed);
        self.client.store(Some(client.into()));
        Served::Lost(tokio::select! {
            ended = &mut connection => match ended {
                Ok(Err(error)) => error.to_string(),
                _ => "closed".to_owned(),
            },
            () = self.is_silent() => "no sign of life; it is made anew".to_owned(),
        })
    }

    /// Returns once enough have given up.
    async fn is_silent(&self) {
        while self.silences.load(Ordering::Relaxed) < SILENCES {
            self.gave_up.notified().await;
        }
    }
}

/// Counts when it is dropped before a reply has come.
struct Silence<'a>(Option<&'a Link>);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.0 {
            link.silences.fetch_add(1, Ordering::Relaxed);
            link.gave_up.notify_one();
        }
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

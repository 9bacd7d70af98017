//! The HTTP/2 connections to one replica, and who has a stream of them.
//!
//! A stream goes on the open connection that has the fewest. When all are full, who comes waits in line for what is
//! given back or opened first: so many connections are being opened as those who wait need, and no more, by tasks of
//! their own, so that nobody depends on who happened to come first. The line is bounded by the slots of the replica.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::connection::Multiplexed;
use crate::types::endpoint::Endpoint;
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};
use crate::upstream::connector::Connector;
use crate::upstream::metrics::ReplicaMetrics;

/// The longest wait for a stream of a request that has no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The connections to one replica.
pub(in crate::upstream) struct SharedPool {
    state: Mutex<State>,
    /// Connections at most.
    usable: usize,
    connect: Duration,
    idle_timeout: Duration,
    connector: Arc<Connector>,
    clock: Clock,
    /// Where they lead.
    pub(in crate::upstream) endpoint: Arc<Endpoint>,
    pub(in crate::upstream) metrics: ReplicaMetrics,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    open: Vec<Open>,
    /// Connections that are being opened.
    opening: usize,
    /// Streams in use, those of connections that take no more included.
    streams: usize,
    /// Streams that the last connection had room for; what is hoped of the next.
    room: usize,
    waiting: VecDeque<oneshot::Sender<Result<Stream, Failure>>>,
}

struct Open {
    connection: Arc<Multiplexed>,
    streams: usize,
    /// Since when it has had none.
    rested: Instant,
}

/// The right to one stream of a connection.
pub(in crate::upstream) struct Stream {
    /// `None` for a connection that is nobody else's.
    pool: Option<Arc<SharedPool>>,
    pub(super) connection: Arc<Multiplexed>,
}

impl Stream {
    /// One on a connection of its own, which ends with it.
    pub(super) fn alone(connection: Multiplexed) -> Self {
        Self {
            pool: None,
            connection: Arc::new(connection),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(&self.connection);
        }
    }
}

impl SharedPool {
    pub(in crate::upstream) fn new(
        endpoint: Arc<Endpoint>,
        usable: usize,
        (connect, idle_timeout): (Duration, Duration),
        connector: Arc<Connector>,
        clock: Clock,
        metrics: ReplicaMetrics,
    ) -> Self {
        Self {
            state: Mutex::default(),
            usable,
            connect,
            idle_timeout,
            connector,
            clock,
            endpoint,
            metrics,
        }
    }

    /// A stream, at once or when there is one. The flag says whether it was had at once.
    ///
    /// # Errors
    /// When no connection can be opened and none is open, and when it takes longer than to `deadline`.
    pub(super) async fn stream(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<(Stream, bool), Failure> {
        let now = self.clock.now().monotonic;
        let told = {
            let mut state = self.state.lock();
            self.tidy(&mut state, now);
            if state.waiting.is_empty()
                && let Some(stream) = self.reserve(&mut state)
            {
                self.publish(&state);
                return Ok((stream, true));
            }
            let (tell, told) = oneshot::channel();
            state.waiting.push_back(tell);
            self.open_more(&mut state);
            told
        };
        match timeout_at(deadline.unwrap_or(now + LONGEST_WAIT), told).await {
            Ok(Ok(outcome)) => outcome.map(|stream| (stream, false)),
            // Nobody drops the line while somebody holds the pool.
            Ok(Err(_)) => Err(Failure::new(FailureKind::NoReplica, "the replica is gone")),
            Err(_) if self.state.lock().opening > 0 => Err(Failure::new(
                FailureKind::ConnectTimeout,
                "the connection to the upstream took too long",
            )),
            Err(_) => Err(Failure::new(
                FailureKind::Overloaded,
                "every stream of the connections to the upstream is in use",
            )),
        }
    }

    /// Opens a connection that is nobody else's.
    pub(super) async fn alone(&self, deadline: Option<Instant>) -> Result<Stream, Failure> {
        let limit = self.clock.now().monotonic + self.connect;
        let limit = deadline.map_or(limit, |deadline| deadline.min(limit));
        let connection = self.connector.connect_shared(&self.endpoint, limit).await?;
        Ok(Stream::alone(connection))
    }

    /// Closes what has been at rest too long, or leads to an address that the replica no longer has; what a broken
    /// connection leaves waiting gets another.
    pub(in crate::upstream) fn sweep(self: &Arc<Self>, now: Instant) {
        let mut state = self.state.lock();
        self.tidy(&mut state, now);
        self.serve(state);
    }

    /// Lets go of the connections that can take nothing more, or have had nothing for long. The exchanges on them go on.
    fn tidy(&self, state: &mut State, now: Instant) {
        let addresses = self.endpoint.addresses();
        state.open.retain(|open| {
            let is_wanted =
                open.streams > 0 || now.saturating_duration_since(open.rested) < self.idle_timeout;
            is_wanted && open.connection.is_open() && addresses.contains(&open.connection.peer)
        });
    }

    /// A stream on the connection that has the fewest, if any has room.
    fn reserve(self: &Arc<Self>, state: &mut State) -> Option<Stream> {
        let with_room = state
            .open
            .iter_mut()
            .filter(|open| open.connection.is_open() && open.streams < open.connection.room());
        let open = with_room.min_by_key(|open| open.streams)?;
        open.streams += 1;
        state.streams += 1;
        Some(Stream {
            pool: Some(self.clone()),
            connection: open.connection.clone(),
        })
    }

    fn give_back(self: &Arc<Self>, connection: &Arc<Multiplexed>) {
        let now = self.clock.now().monotonic;
        let mut state = self.state.lock();
        state.streams = state.streams.saturating_sub(1);
        if let Some(open) = state
            .open
            .iter_mut()
            .find(|open| Arc::ptr_eq(&open.connection, connection))
        {
            open.streams = open.streams.saturating_sub(1);
            open.rested = now;
        }
        self.serve(state);
    }

    /// Gives those who wait what is there, and opens what the others need.
    fn serve(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        let mut served = Vec::new();
        state.waiting.retain(|waiting| !waiting.is_closed());
        while !state.waiting.is_empty()
            && let Some(stream) = self.reserve(&mut state)
        {
            served.extend(state.waiting.pop_front().map(|waiting| (waiting, stream)));
        }
        self.open_more(&mut state);
        self.publish(&state);
        drop(state);
        for (waiting, stream) in served {
            // Who has left meanwhile gives it back.
            let _ = waiting.send(Ok(stream));
        }
    }

    /// Opens as many connections as those who wait need, and are not being opened yet.
    fn open_more(self: &Arc<Self>, state: &mut State) {
        let hoped = match state.room {
            0 => crate::config::protocol::STREAMS,
            room => room,
        };
        while state.waiting.len() > state.opening * hoped && state.open.len() + state.opening < self.usable {
            state.opening += 1;
            let pool = self.clone();
            tokio::spawn(async move { pool.open().await });
        }
    }

    async fn open(self: Arc<Self>) {
        let limit = self.clock.now().monotonic + self.connect;
        let opened = self.connector.connect_shared(&self.endpoint, limit).await;
        let now = self.clock.now().monotonic;
        let mut state = self.state.lock();
        state.opening -= 1;
        match opened {
            Ok(connection) => {
                self.metrics.opened.inc();
                state.room = connection.room();
                state.open.push(Open {
                    connection: Arc::new(connection),
                    streams: 0,
                    rested: now,
                });
                self.serve(state);
            }
            // Others may fare better, or give a stream back.
            Err(_) if state.opening > 0 || !state.open.is_empty() => {}
            Err(failure) => {
                for waiting in std::mem::take(&mut state.waiting) {
                    // Who has left does not mind.
                    let _ = waiting.send(Err(failure.clone()));
                }
            }
        }
    }

    fn publish(&self, state: &State) {
        let active = state.open.iter().filter(|open| open.streams > 0).count();
        self.metrics.active.set(active as i64);
        self.metrics.idle.set((state.open.len() - active) as i64);
        self.metrics.streams.set(state.streams as i64);
    }
}

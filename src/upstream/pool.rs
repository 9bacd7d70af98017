//! The connections to one replica: those in use are counted, those at rest are kept newest on top.
//!
//! Both together never exceed the slots of the replica: a stock dify-api gives a worker to every open
//! connection, also to one that is silent.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::Connection;
use super::metrics::ReplicaMetrics;
use crate::types::endpoint::Endpoint;

/// The connections to one replica.
pub(super) struct Pool {
    state: Mutex<State>,
    usable: usize,
    idle_timeout: Duration,
    /// Where they lead.
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) metrics: ReplicaMetrics,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    idle: Vec<(Instant, Connection)>,
    active: usize,
}

impl Pool {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        usable: usize,
        idle_timeout: Duration,
        metrics: ReplicaMetrics,
    ) -> Self {
        Self {
            state: Mutex::default(),
            usable,
            idle_timeout,
            endpoint,
            metrics,
        }
    }

    /// Counts one exchange from now until the lease is dropped.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        let mut state = self.state.lock();
        state.active += 1;
        self.publish(&state);
        Lease(self.clone())
    }

    /// The connection that came to rest last, if it is open and ready. A connection that the origin has
    /// closed is dropped here; one that it is closing at this moment can still come out.
    pub(super) fn check_out(&self, now: Instant) -> Option<Connection> {
        let mut state = self.state.lock();
        self.tidy(&mut state, now);
        let newest_ready = state
            .idle
            .iter()
            .rposition(|(_, connection)| connection.is_ready())?;
        let (_, connection) = state.idle.remove(newest_ready);
        self.publish(&state);
        Some(connection)
    }

    /// Closes the connections that have been at rest longest until one more fits beside those in use.
    pub(super) fn make_room(&self) {
        let mut state = self.state.lock();
        let allowed = self.usable.saturating_sub(state.active);
        let surplus = state.idle.len().saturating_sub(allowed);
        state.idle.drain(..surplus);
        self.publish(&state);
    }

    /// Puts a connection to rest. It may still be about to become ready.
    fn check_in(&self, connection: Connection, now: Instant) {
        let mut state = self.state.lock();
        state.idle.push((now, connection));
        self.publish(&state);
    }

    /// Closes what has been at rest too long, was closed by the origin, or leads to an address that the
    /// replica no longer has.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = self.state.lock();
        self.tidy(&mut state, now);
        self.publish(&state);
    }

    fn tidy(&self, state: &mut State, now: Instant) {
        let addresses = self.endpoint.addresses();
        state.idle.retain(|(since, connection)| {
            !connection.is_closed()
                && now.saturating_duration_since(*since) < self.idle_timeout
                && addresses.contains(&connection.peer)
        });
    }

    fn publish(&self, state: &State) {
        self.metrics.idle.set(state.idle.len() as i64);
        self.metrics.active.set(state.active as i64);
    }
}

/// One exchange that is counted as in use.
pub(super) struct Lease(Arc<Pool>);

impl Lease {
    /// Ends the exchange and keeps its connection for the next.
    pub(super) fn keep(self, connection: Connection, now: Instant) {
        self.0.check_in(connection, now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.active = state.active.saturating_sub(1);
        self.0.publish(&state);
    }
}

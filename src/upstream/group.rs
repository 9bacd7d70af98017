//! What is kept for one configured upstream: the connections to each of its replicas.
//!
//! A replica is known by its place; another one may have been there before. What is spoken to replicas decides which of
//! the two pools they have: connections that serve one exchange at a time (`pool`), or many (`multiplex`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use super::connector::Connector;
use super::metrics::UpstreamMetrics;
use super::multiplex::SharedPool;
use super::pool::Pool;
use crate::config::{UpstreamConfig, UpstreamProtocol};
use crate::types::endpoint::Endpoint;
use crate::types::time::Clock;

/// The connections to one replica.
#[derive(Clone)]
pub(super) enum Kept {
    /// HTTP/1.1
    Exclusive(Arc<Pool>),
    /// HTTP/2
    Shared(Arc<SharedPool>),
}

impl Kept {
    fn endpoint(&self) -> &Arc<Endpoint> {
        match self {
            Self::Exclusive(pool) => &pool.endpoint,
            Self::Shared(pool) => &pool.endpoint,
        }
    }

    fn sweep(&self, now: Instant) {
        match self {
            Self::Exclusive(pool) => pool.sweep(now),
            Self::Shared(pool) => pool.sweep(now),
        }
    }
}

/// What is kept for one configured upstream.
pub(super) struct Group {
    name: String,
    protocol: UpstreamProtocol,
    pub(super) connect: Duration,
    usable: usize,
    idle_timeout: Duration,
    connector: Arc<Connector>,
    clock: Clock,
    /// By the replica's place.
    pools: RwLock<Vec<Option<Kept>>>,
}

impl Group {
    pub(super) fn new(
        name: &str,
        config: &UpstreamConfig,
        connector: &Arc<Connector>,
        clock: &Clock,
    ) -> Self {
        Self {
            name: name.to_owned(),
            protocol: config.protocol,
            connect: config.timeouts.connect.0,
            usable: config.connections.usable(),
            idle_timeout: config.connections.idle_timeout.0,
            connector: connector.clone(),
            clock: clock.clone(),
            pools: RwLock::default(),
        }
    }

    /// The connections to `endpoint`. Another replica may have been in its place before.
    pub(super) fn kept(&self, endpoint: &Arc<Endpoint>, metrics: &UpstreamMetrics) -> Kept {
        let place = endpoint.replica;
        let is_its = |kept: &&Kept| Arc::ptr_eq(kept.endpoint(), endpoint);
        if let Some(kept) = self
            .pools
            .read()
            .get(place)
            .and_then(Option::as_ref)
            .filter(is_its)
        {
            return kept.clone();
        }
        let mut pools = self.pools.write();
        if pools.len() <= place {
            pools.resize_with(place + 1, || None);
        }
        if let Some(kept) = pools[place].as_ref().filter(is_its) {
            return kept.clone();
        }
        self.forget(&mut pools, place, metrics);
        let its_metrics = metrics.replica(&self.name, &endpoint.authority());
        let kept = if self.protocol == UpstreamProtocol::Http1 {
            Kept::Exclusive(Arc::new(Pool::new(
                endpoint.clone(),
                self.usable,
                self.idle_timeout,
                its_metrics,
            )))
        } else {
            Kept::Shared(Arc::new(SharedPool::new(
                endpoint.clone(),
                self.usable,
                (self.connect, self.idle_timeout),
                self.connector.clone(),
                self.clock.clone(),
                its_metrics,
            )))
        };
        pools[place] = Some(kept.clone());
        kept
    }

    /// Closes what is at `place`, whose replica is gone.
    fn forget(&self, pools: &mut [Option<Kept>], place: usize, metrics: &UpstreamMetrics) {
        let Some(kept) = pools[place].take() else { return };
        let authority = kept.endpoint().authority();
        // It may have come back in another place.
        if !pools
            .iter()
            .flatten()
            .any(|other| other.endpoint().authority() == authority)
        {
            metrics.forget(&self.name, &authority);
        }
    }

    /// Closes connections that have been at rest too long, and all to replicas that are gone.
    pub(super) fn sweep(&self, now: Instant, metrics: &UpstreamMetrics) {
        for kept in self.pools.read().iter().flatten() {
            kept.sweep(now);
        }
        let is_gone = |kept: &Kept| Arc::strong_count(kept.endpoint()) == 1;
        if !self.pools.read().iter().flatten().any(is_gone) {
            return;
        }
        let mut pools = self.pools.write();
        for place in 0..pools.len() {
            if pools[place].as_ref().is_some_and(is_gone) {
                self.forget(&mut pools, place, metrics);
            }
        }
    }
}

//! Single flight: concurrent misses for one key make one fetch.
//!
//! The fetch runs detached from the request that began it, so nobody's leaving ends it for the others. Those
//! who wait get the stored answer, or are all let go at once when there is none to share. A request that comes
//! after a write has ended the answer in flight does not join it but begins anew.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use tokio::sync::watch;

use super::entry::Entry;
use super::invalidation::{SharedVersions, TagVersions};
use super::key::Key;
use super::sync::Mutex;
use crate::types::Failure;

/// How a flight ended, for those who waited.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    /// Here is the answer; whether it also went into the cache.
    Shared(Arc<Entry>, bool),
    /// The origin answered with an error of its own (5xx): nothing to share, and nothing new.
    Refused(StatusCode),
    /// The answer is not one to share: everyone for himself.
    Unshared,
    /// There is no answer, and asking again at once would not help.
    Failed(Failure),
    /// It was only looked for in the tier that instances share, and is not there; with the versions that are.
    Missed(Option<SharedVersions>),
}

#[derive(Debug)]
struct Flight {
    versions: TagVersions,
    landing: watch::Sender<Option<Landing>>,
}

/// The flights under way, in shards so that keys do not contend.
#[derive(Debug, Clone)]
pub(super) struct Flights(Arc<[Shard]>);

type Shard = Mutex<HashMap<Key, Arc<Flight>>>;

/// What a request that missed is to do.
pub(super) enum Role {
    /// Fetch, then land.
    Leader(Leader),
    /// Wait.
    Follower(watch::Receiver<Option<Landing>>),
}

/// The duty to land. Dropped without landing (cancelled, panicked), it lets everyone go.
pub(super) struct Leader {
    flights: Flights,
    key: Key,
    flight: Arc<Flight>,
}

const SHARDS: usize = 64;

impl Flights {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    fn shard(&self, key: &Key) -> &Shard {
        &self.0[usize::from(key.0[15]) % SHARDS]
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Joins the flight for `key`, if its answer will be as new as `versions` ask, or begins one.
    pub(super) fn join(&self, key: Key, versions: &TagVersions) -> Role {
        let mut shard = self.shard(&key).lock();
        if let Some(flight) = shard.get(&key)
            && flight.versions == *versions
        {
            return Role::Follower(flight.landing.subscribe());
        }
        let flight = Arc::new(Flight {
            versions: versions.clone(),
            landing: watch::Sender::new(None),
        });
        shard.insert(key, flight.clone());
        drop(shard);
        Role::Leader(Leader {
            flights: self.clone(),
            key,
            flight,
        })
    }
}

impl Leader {
    /// Ends the flight and tells everyone who waits.
    pub(super) fn land(self, landing: Landing) {
        self.flight.landing.send_replace(Some(landing));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key).lock();
        if shard
            .get(&self.key)
            .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
        {
            shard.remove(&self.key);
        }
        drop(shard);
        self.flight.landing.send_if_modified(|landing| {
            let lost = landing.is_none();
            if lost {
                *landing = Some(Landing::Unshared);
            }
            lost
        });
    }
}

/// Waits for the end of somebody else's flight.
pub(super) async fn wait(mut flight: watch::Receiver<Option<Landing>>) -> Landing {
    match flight.wait_for(Option::is_some).await {
        Ok(landing) => landing.clone().unwrap_or(Landing::Unshared),
        Err(_) => Landing::Unshared,
    }
}

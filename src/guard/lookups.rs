//! Asks the source about single ids that the filters do not have: once for all who want to know the same, many in one
//! query, and no more a second than is configured.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::budget::{Budget, Rate};
use super::known_ids::{Lookup, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::Clock;

/// The most that one query asks for.
const TOGETHER: usize = 100;
/// The most that wait for one id; further ones are told that there is no budget.
const MOST_WAITING: usize = 1024;

/// Ids, and who waits for each.
type Asked = Vec<(KnownId, Vec<Told>)>;

type Told = oneshot::Sender<Result<bool, SourceError>>;

/// See the module.
pub(super) struct Lookups {
    source: Arc<dyn Lookup>,
    clock: Clock,
    /// How many ids may be looked up.
    budget: Budget,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Bounded by the budget and by how long the source may take.
    ids: HashMap<(IdKind, KnownId), Vec<Told>>,
    has_worker: bool,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Exists,
    Missing,
    /// Too many were looked up in the last second.
    NoBudget,
    /// The source cannot tell.
    Unsure,
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

impl Lookups {
    /// At most `per_second` ids a second are looked up in `source`.
    pub(super) fn new(source: Arc<dyn Lookup>, per_second: u32, clock: Clock) -> Arc<Self> {
        let now = clock.now().monotonic;
        let rate = Rate {
            tokens: per_second,
            period: Duration::from_secs(1),
        };
        Arc::new(Self {
            source,
            budget: Budget::new(rate, now),
            clock,
            waiting: Mutex::default(),
        })
    }

    /// Whether there is such a thing.
    pub(super) async fn look(self: &Arc<Self>, kind: IdKind, id: KnownId) -> Looked {
        match self.join(kind, id) {
            None => Looked::NoBudget,
            Some(told) => match told.await {
                Ok(Ok(true)) => Looked::Exists,
                Ok(Ok(false)) => Looked::Missing,
                Ok(Err(_)) | Err(_) => Looked::Unsure,
            },
        }
    }

    /// Waits with those who want to know the same, or as the first. Who asks while the source is being asked waits for
    /// the next time: it may have been created meanwhile.
    fn join(
        self: &Arc<Self>,
        kind: IdKind,
        id: KnownId,
    ) -> Option<oneshot::Receiver<Result<bool, SourceError>>> {
        let (to, told) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        match waiting.ids.get_mut(&(kind, id)) {
            Some(others) if others.len() >= MOST_WAITING => return None,
            Some(others) => others.push(to),
            None if self.budget.take(self.clock.now().monotonic).is_err() => return None,
            None => drop(waiting.ids.insert((kind, id), vec![to])),
        }
        if !std::mem::replace(&mut waiting.has_worker, true) {
            let lookups = self.clone();
            tokio::spawn(async move { lookups.work().await });
        }
        Some(told)
    }

    /// Asks until nobody waits.
    async fn work(&self) {
        // Everybody else who can go on asks before this task goes on.
        tokio::task::yield_now().await;
        while let Some((kind, waiting)) = self.next() {
            let ids: Vec<_> = waiting.iter().map(|(id, _)| *id).collect();
            let answer = self.source.which_exist(kind, &ids).await;
            for (place, (_, told)) in waiting.into_iter().enumerate() {
                let said = match &answer {
                    Ok(exist) => exist.get(place).copied().ok_or(SourceError::Unknown(kind)),
                    Err(error) => Err(error.clone()),
                };
                for to in told {
                    // Whoever does not wait any more has left.
                    let _ = to.send(said.clone());
                }
            }
        }
    }

    /// Ids of one kind that somebody waits for; without any the worker ends.
    fn next(&self) -> Option<(IdKind, Asked)> {
        let mut waiting = self.waiting.lock();
        let Some(kind) = waiting.ids.keys().next().map(|(kind, _)| *kind) else {
            waiting.has_worker = false;
            return None;
        };
        let same = waiting.ids.keys().filter(|(other, _)| *other == kind);
        let ids: Vec<_> = same.map(|(_, id)| *id).take(TOGETHER).collect();
        let taken = ids
            .into_iter()
            .map(|id| (id, waiting.ids.remove(&(kind, id)).unwrap_or_default()));
        Some((kind, taken.collect()))
    }
}

//! Asks the source about single ids that the filters do not have: once for all who want to know the same, many in one
//! query, and no more a second than is configured. Half of those are kept for clients that ask for little: one that
//! guesses does not use up what others need.
//!
//! No request waits for longer than [`PATIENCE`]. While the source does not answer for a kind nobody waits for it at
//! all, but for one look-up a second that finds out whether it does again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::budget::{Budget, ClientBudgets, Payer, Rate};
use super::known_ids::{Lookup, SourceError};
use crate::types::known::{IdKind, KnownId};
use crate::types::time::Clock;

/// The most that one query asks for.
const TOGETHER: usize = 100;
/// The most that wait for one id; for further ones it is not sure.
const MOST_WAITING: usize = 1024;
/// The longest that a request waits.
// A primary key is found within milliseconds. What takes longer than this is a database in trouble, and a client would
// feel the wait more than Dify feels the request.
const PATIENCE: Duration = Duration::from_millis(500);
/// Of all look-ups one part in so many is every client's, even while few are left, to be used in vain.
const SHARE: u32 = 40;
/// Clients that are told apart.
const MOST_CLIENTS: usize = 1 << 12;
/// After a failure nothing is looked up for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// Ids, and who waits for each.
type Asked = Vec<(KnownId, Vec<Told>)>;

type Told = oneshot::Sender<Result<bool, SourceError>>;

/// See the module.
pub(super) struct Lookups {
    source: Arc<dyn Lookup>,
    clock: Clock,
    /// How many ids may be looked up.
    budget: Budget,
    clients: ClientBudgets,
    per_second: u32,
    /// Each kind by itself: a table that is locked keeps no other waiting.
    kinds: Vec<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    /// Bounded by the budget and by [`PATIENCE`].
    ids: HashMap<KnownId, Vec<Told>>,
    has_worker: bool,
    /// Since the source did not answer: when it may be asked again.
    silent_until: Option<Instant>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Exists,
    Missing,
    /// Too many were looked up in the last second.
    NoBudget,
    /// The source cannot tell, or not in time.
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
        let share = Rate {
            tokens: (per_second / SHARE).max(1),
            ..rate
        };
        Arc::new(Self {
            source,
            budget: Budget::new(rate, now),
            clients: ClientBudgets::new(share, MOST_CLIENTS, now),
            per_second,
            clock,
            kinds: IdKind::ALL.iter().map(|_| Mutex::default()).collect(),
        })
    }

    /// Whether there is such a thing.
    pub(super) async fn look(self: &Arc<Self>, kind: IdKind, id: KnownId, payer: Payer) -> Looked {
        let told = match self.join(kind, id, payer) {
            Ok(told) => told,
            Err(looked) => return looked,
        };
        match timeout(PATIENCE, told).await {
            Ok(Ok(Ok(true))) => {
                // Who asks for what exists does not guess.
                self.clients.give_back(payer);
                Looked::Exists
            }
            Ok(Ok(Ok(false))) => Looked::Missing,
            Ok(_) => Looked::Unsure,
            Err(_) => {
                self.fall_silent(kind);
                Looked::Unsure
            }
        }
    }

    /// Waits with those who want to know the same, or as the first. Who asks while the source is being asked waits for
    /// the next time: it may have been created meanwhile.
    fn join(
        self: &Arc<Self>,
        kind: IdKind,
        id: KnownId,
        payer: Payer,
    ) -> Result<oneshot::Receiver<Result<bool, SourceError>>, Looked> {
        let now = self.clock.now().monotonic;
        let (to, told) = oneshot::channel();
        let mut waiting = self.kinds[kind as usize].lock();
        if let Some(until) = waiting.silent_until
            && (waiting.has_worker || now < until)
        {
            return Err(Looked::Unsure);
        }
        match waiting.ids.get_mut(&id) {
            Some(others) if others.len() >= MOST_WAITING => return Err(Looked::Unsure),
            Some(others) => others.push(to),
            None if !self.may_ask(payer, now) => return Err(Looked::NoBudget),
            None => drop(waiting.ids.insert(id, vec![to])),
        }
        if !std::mem::replace(&mut waiting.has_worker, true) {
            let lookups = self.clone();
            tokio::spawn(async move { lookups.work(kind).await });
        }
        Ok(told)
    }

    /// Takes a look-up from those of this second. Who has had his share of them leaves half for others.
    fn may_ask(&self, payer: Payer, now: Instant) -> bool {
        let kept = match self.clients.take(payer, now) {
            Ok(()) => 0,
            Err(_) => self.per_second / 2,
        };
        self.budget.take(kept, now).is_ok()
    }

    /// The source has not answered. Those who wait are told when their patience ends, or are gone.
    fn fall_silent(&self, kind: IdKind) {
        let again = self.clock.now().monotonic + SILENCE;
        let mut waiting = self.kinds[kind as usize].lock();
        waiting.silent_until = Some(again);
        waiting.ids.clear();
    }

    /// Asks until nobody waits.
    async fn work(&self, kind: IdKind) {
        // Everybody else who can go on asks before this task goes on.
        tokio::task::yield_now().await;
        while let Some(waiting) = self.next(kind) {
            let ids: Vec<_> = waiting.iter().map(|(id, _)| *id).collect();
            let answer = self.source.which_exist(kind, &ids).await;
            match &answer {
                Ok(_) => self.kinds[kind as usize].lock().silent_until = None,
                Err(_) => self.fall_silent(kind),
            }
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

    /// Ids that somebody waits for; without any the worker ends.
    fn next(&self, kind: IdKind) -> Option<Asked> {
        let mut waiting = self.kinds[kind as usize].lock();
        if waiting.ids.is_empty() {
            waiting.has_worker = false;
            return None;
        }
        let ids: Vec<_> = waiting.ids.keys().copied().take(TOGETHER).collect();
        let taken = ids
            .into_iter()
            .map(|id| (id, waiting.ids.remove(&id).unwrap_or_default()));
        Some(taken.collect())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, join_all};

    use super::*;

    const SOMEBODY: Payer = Payer::V4([192, 0, 2, 1]);

    /// How a source is today.
    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Well,
        Fails,
        Hangs,
    }

    /// Has every id that ends in 1; each query is kept.
    struct Source {
        mood: Mutex<Mood>,
        asked: Mutex<Vec<(IdKind, Vec<KnownId>)>>,
    }

    impl Source {
        fn queries(&self) -> usize {
            self.asked.lock().len()
        }
    }

    impl Lookup for Source {
        fn which_exist<'a>(
            &'a self,
            kind: IdKind,
            ids: &'a [KnownId],
        ) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
            self.asked.lock().push((kind, ids.to_vec()));
            Box::pin(async move {
                let mood = *self.mood.lock();
                match mood {
                    Mood::Well => tokio::time::sleep(Duration::from_millis(2)).await,
                    Mood::Fails => {}
                    Mood::Hangs => tokio::time::sleep(Duration::from_secs(10)).await,
                }
                match mood {
                    Mood::Well => Ok(ids.iter().map(|id| id.0[15] == 1).collect()),
                    _ => Err(SourceError::Unreachable("gone".into())),
                }
            })
        }
    }

    fn lookups(mood: Mood, per_second: u32) -> (Arc<Source>, Arc<Lookups>) {
        let source = Arc::new(Source {
            mood: Mutex::new(mood),
            asked: Mutex::default(),
        });
        let lookups = Lookups::new(source.clone(), per_second, Clock::System);
        (source, lookups)
    }

    fn id(number: u16) -> KnownId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        bytes[15] = u8::from(number % 2 == 1);
        KnownId(bytes)
    }

    async fn look(lookups: &Arc<Lookups>, number: u16) -> (Looked, Duration) {
        let began = Clock::System.now().monotonic;
        let looked = lookups.look(IdKind::Dataset, id(number), SOMEBODY).await;
        (looked, Clock::System.now().monotonic - began)
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_the_same_at_once_is_answered_by_one_query_within_the_budget() {
        let (source, lookups) = lookups(Mood::Well, 10);
        let asks = (0..200_u16).map(|number| {
            let payer = Payer::V4([192, 0, 2, (number % 20) as u8]);
            lookups.look(IdKind::Dataset, id(number % 20), payer)
        });
        let told = join_all(asks).await;
        let count = |looked| told.iter().filter(|told| **told == looked).count();
        assert_eq!(
            (
                count(Looked::Exists),
                count(Looked::Missing),
                count(Looked::NoBudget)
            ),
            (50, 50, 100)
        );
        assert_eq!(source.queries(), 1);
        assert_eq!(source.asked.lock()[0].1.len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_guesses_leaves_look_ups_for_others() {
        let (_source, lookups) = lookups(Mood::Well, 40);
        for _ in 0..5 {
            let guesses = join_all((0..200).map(|number| look(&lookups, 2 * number))).await;
            let made = guesses.iter().filter(|told| told.0 == Looked::Missing).count();
            assert!((1..=40).contains(&made), "{made}");
            for other in 2..12 {
                let payer = Payer::V4([192, 0, 2, other]);
                let looked = lookups.look(IdKind::Dataset, id(1), payer).await;
                assert_eq!(looked, Looked::Exists, "{other}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_waits_for_a_database_that_hangs_longer_than_it_has_patience() {
        let (source, lookups) = lookups(Mood::Hangs, 10);
        assert_eq!(look(&lookups, 1).await, (Looked::Unsure, PATIENCE));
        for number in 0..100 {
            assert_eq!(look(&lookups, number).await, (Looked::Unsure, Duration::ZERO));
        }
        assert_eq!(source.queries(), 1);
        // A table that is locked is one kind's.
        *source.mood.lock() = Mood::Well;
        assert_eq!(
            lookups.look(IdKind::Document, id(1), SOMEBODY).await,
            Looked::Exists
        );
        // The query that hung ends in an error; a second later somebody tries again.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(look(&lookups, 1).await, (Looked::Unsure, Duration::ZERO));
        tokio::time::sleep(SILENCE).await;
        assert_eq!(look(&lookups, 1).await.0, Looked::Exists);
        assert_eq!(look(&lookups, 2).await.0, Looked::Missing);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_look_up_a_second_finds_out_whether_the_source_answers_again() {
        let (source, lookups) = lookups(Mood::Fails, 1000);
        for second in 1..5 {
            let told = join_all((0..50).map(|number| look(&lookups, number / 25 * 2))).await;
            assert!(told.iter().all(|told| *told == (Looked::Unsure, Duration::ZERO)));
            assert_eq!(source.queries(), second);
            tokio::time::sleep(SILENCE).await;
        }
        assert!(source.asked.lock()[1..].iter().all(|(_, ids)| ids.len() == 1));
        *source.mood.lock() = Mood::Well;
        let told = join_all((0..50).map(|number| look(&lookups, number))).await;
        assert_eq!(told.iter().filter(|told| told.0 == Looked::Unsure).count(), 49);
        assert_eq!(look(&lookups, 7).await.0, Looked::Exists);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_waits_for_one_id_is_not_told_that_it_is_missing() {
        let (_source, lookups) = lookups(Mood::Well, 1);
        let told = join_all((0..MOST_WAITING + 5).map(|_| look(&lookups, 1))).await;
        assert_eq!(told.iter().filter(|told| told.0 == Looked::Unsure).count(), 5);
        assert!(
            told.iter()
                .all(|told| matches!(told.0, Looked::Exists | Looked::Unsure))
        );
    }
}

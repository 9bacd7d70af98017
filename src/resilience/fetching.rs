//! One fetch: its first attempt, perhaps with a hedge beside it, and those that follow.
//!
//! Nothing is tried again once an answer's head has come, but for an answer that says that its server could not give
//! one: see [`reason_to_ask_another`](super::decision::reason_to_ask_another).
//!
//! **Waits.** A retry waits for a time that is drawn (`jitter`), so that what failed has a moment and requests that
//! failed together come again apart. That spares the replica that failed; another one has nothing to be spared for.
//! So where a connection could not be made (the commonest failure, known within a round trip, of a replica that is
//! restarting) the first retry goes at once to a healthy replica that has a free slot, and waits only where there is
//! none: at a single node. A 502, 503 or 504 is tried at another replica at once or not at all: the same would say the
//! same, and its answer would have to be kept, with the slot that it holds, for as long as the retry waits.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::Response;
use http::header::UPGRADE;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt as _};

use super::budget::Leave;
use super::decision::{Reason, is_read, reason_to_ask_another, reason_to_retry};
use super::upstream::{Hedging, Upstream};
use crate::types::request::{
    Attempt, BodySlot, FailedAttempt, FetchHead, FetchRequest, Lane, Placed, Placing,
};
use crate::types::time::Clock;
use crate::types::{Body, Failure};

/// How an attempt ended.
type Outcome = Result<Response<Body>, FailedAttempt>;

/// How far an attempt is once it is known whether it has a replica.
enum Begun {
    /// It has none.
    Refused(Outcome),
    /// It has one, and has ended already.
    Ended(Outcome),
    /// It has one and goes on.
    Going,
}

/// A fetch under way.
pub(super) struct Fetching<S> {
    inner: S,
    upstream: Arc<Upstream>,
    clock: Clock,
    fetch: Arc<FetchHead>,
    body: BodySlot,
    /// Attempts made, hedges not counted.
    attempts: u32,
    avoid: SmallVec<[usize; 4]>,
}

impl<S> Fetching<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = FailedAttempt> + Clone,
{
    pub(super) fn new(inner: S, upstream: Arc<Upstream>, clock: Clock, request: FetchRequest) -> Self {
        Self {
            inner,
            upstream,
            clock,
            fetch: Arc::new(request.head),
            body: BodySlot::new(request.body),
            attempts: 0,
            avoid: SmallVec::new(),
        }
    }

    /// Makes attempts until one is answered or none may follow.
    pub(super) async fn run(mut self) -> Result<Response<Body>, Failure> {
        let upstream = self.upstream.clone();
        upstream.retries.lock().pay(self.now());
        let mut outcome = match &upstream.hedge {
            Some(hedging) if self.may_be_hedged(hedging) => self.hedged(hedging).await,
            _ => self.make(Placing::Queue).await,
        };
        loop {
            self.attempts += 1;
            let Some(reason) = self.reason(&outcome) else {
                break;
            };
            let Some(leave) = upstream.retries.lock().draw(self.now()) else {
                upstream.metrics.refused.inc();
                break;
            };
            outcome = match outcome {
                Err(_) => {
                    upstream.metrics.retried(reason);
                    self.again(reason).await
                }
                Ok(answer) => match self.elsewhere(answer, leave).await {
                    Ok(outcome) => {
                        upstream.metrics.retried(reason);
                        outcome
                    }
                    Err(answer) => return Ok(answer),
                },
            };
        }
        outcome.map_err(|failed| failed.failure)
    }

    /// Why the fetch is tried again after `outcome`.
    fn reason(&self, outcome: &Outcome) -> Option<Reason> {
        let reason = match outcome {
            Ok(answer) => reason_to_ask_another(answer, &self.fetch),
            Err(failed) => reason_to_retry(failed, self.fetch.is_safe()),
        };
        let in_time = self.fetch.deadline.is_none_or(|end| self.now() < end);
        reason.filter(|_| self.attempts < self.upstream.retry.attempts && in_time && self.body.is_available())
    }

    /// Tries again what failed.
    async fn again(&mut self, reason: Reason) -> Outcome {
        if reason == Reason::ConnectFailed && self.attempts == 1 {
            let (attempt, placed) = self.attempt(Placing::Elsewhere);
            let outcome = self.send(attempt).await;
            if self.took(&placed) {
                return outcome;
            }
        }
        let left = self.fetch.deadline.map(|end| end - self.now());
        let Upstream { jitter, retry, .. } = &*self.upstream;
        let wait = jitter.wait(retry.backoff.0, self.attempts, left);
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.make(Placing::Queue).await
    }

    /// Asks another replica, whose answer takes the place of `answer`; that is let go, with all that it holds, once it
    /// is known that there is another.
    ///
    /// # Errors
    /// `answer`, when there is none.
    async fn elsewhere(&mut self, answer: Response<Body>, leave: Leave) -> Result<Outcome, Response<Body>> {
        let (attempt, placed) = self.attempt(Placing::Elsewhere);
        let mut going = pin!(self.send(attempt));
        let outcome = match begin(going.as_mut(), &placed).await {
            Begun::Refused(_) => {
                self.upstream.retries.lock().give_back(leave);
                return Err(answer);
            }
            Begun::Ended(outcome) => outcome,
            Begun::Going => {
                drop(answer);
                going.await
            }
        };
        self.took(&placed);
        Ok(outcome)
    }

    /// Whether this fetch is a read that may be asked twice.
    fn may_be_hedged(&self, hedging: &Hedging) -> bool {
        let FetchHead {
            parts, class, lane, ..
        } = &*self.fetch;
        // Who fetches in the background waits for nothing.
        *lane == Lane::Short
            && hedging.covers(*class)
            && is_read(&parts.method)
            && self.body.is_empty()
            && !parts.headers.contains_key(UPGRADE)
    }

    /// Makes the first attempt, and another beside it at another replica if that has no answer for longer than usual.
    async fn hedged(&mut self, hedging: &Hedging) -> Outcome {
        let class = self.fetch.class;
        hedging.budget.lock().pay(self.now());
        let (attempt, placed) = self.attempt(Placing::Queue);
        let mut first = pin!(self.send(attempt));
        match begin(first.as_mut(), &placed).await {
            Begun::Refused(outcome) => return outcome,
            Begun::Ended(outcome) => {
                self.took(&placed);
                return outcome;
            }
            Begun::Going => {
                self.took(&placed);
            }
        }
        let begun = self.now();
        let outcome = match hedging.after(class, begun) {
            None => first.await,
            Some(after) => tokio::select! {
                biased;
                outcome = first.as_mut() => outcome,
                () = sleep(after) => self.race(first, hedging).await,
            },
        };
        // Of one that was hedged this is too short, but still among the longest.
        if !self.is_no_answer(&outcome) {
            let now = self.now();
            hedging.answered(class, now - begun, now);
        }
        outcome
    }

    /// Asks another replica what `first` is asking: the first answer counts, and the other request is dropped.
    async fn race(
        &mut self,
        mut first: Pin<&mut impl Future<Output = Outcome>>,
        hedging: &Hedging,
    ) -> Outcome {
        let Some(leave) = hedging.budget.lock().draw(self.now()) else {
            return first.await;
        };
        let (attempt, placed) = self.attempt(Placing::Hedge);
        let mut second = pin!(self.send(attempt));
        let begun = begin(second.as_mut(), &placed).await;
        if let Begun::Refused(_) = begun {
            hedging.budget.lock().give_back(leave);
            return first.await;
        }
        self.took(&placed);
        let metrics = self.upstream.metrics.clone();
        metrics.hedges.inc();
        let (outcome, is_second) = match begun {
            Begun::Ended(outcome) => (outcome, true),
            _ => tokio::select! {
                biased;
                outcome = first.as_mut() => (outcome, false),
                outcome = second.as_mut() => (outcome, true),
            },
        };
        if self.is_no_answer(&outcome) {
            // Not held any longer, nor what it holds.
            drop(outcome);
            return match is_second {
                true => first.await,
                false => second.await,
            };
        }
        if is_second {
            metrics.hedges_won.inc();
        }
        outcome
    }

    /// Whether another attempt may still give what `outcome` does not.
    fn is_no_answer(&self, outcome: &Outcome) -> bool {
        match outcome {
            Ok(answer) => reason_to_ask_another(answer, &self.fetch).is_some(),
            Err(_) => true,
        }
    }

    /// Makes an attempt.
    async fn make(&mut self, placing: Placing) -> Outcome {
        let (attempt, placed) = self.attempt(placing);
        let outcome = self.send(attempt).await;
        self.took(&placed);
        outcome
    }

    fn attempt(&self, placing: Placing) -> (Attempt, Placed) {
        let placed = Placed::default();
        let attempt = Attempt {
            fetch: self.fetch.clone(),
            body: self.body.clone(),
            number: self.attempts,
            avoid: self.avoid.clone(),
            placing,
            placed: placed.clone(),
        };
        (attempt, placed)
    }

    fn send(&self, attempt: Attempt) -> impl Future<Output = Outcome> + use<S> {
        self.inner.clone().oneshot(attempt)
    }

    /// Has further attempts avoid the replica of one. False when it had none.
    fn took(&mut self, placed: &Placed) -> bool {
        self.avoid.extend(placed.get());
        placed.get().is_some()
    }

    fn now(&self) -> Instant {
        self.clock.now().monotonic
    }
}

/// Lets an attempt go on until it is known whether it has a replica.
async fn begin(attempt: Pin<&mut impl Future<Output = Outcome>>, placed: &Placed) -> Begun {
    tokio::select! {
        biased;
        outcome = attempt => match placed.get() {
            None => Begun::Refused(outcome),
            Some(_) => Begun::Ended(outcome),
        },
        () = placed.wait() => Begun::Going,
    }
}

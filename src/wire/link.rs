//! What the two ends of one connection, the raw bytes (`screen`) and the requests (`service`), tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::recall::Seen;
use crate::types::Failure;
use crate::types::time::Clock;

/// The shared state of one connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<State>,
    /// Whether the connection has been quiet for so long that what serves requests on it is to be put away.
    parked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Requests that were begun.
    begun: u64,
    /// The request of that number is one that may be remembered.
    seen: Option<(u64, Seen)>,
    /// The request of that number stands for a head that was refused.
    refusal: Option<(u64, Failure)>,
    /// Why the body of the current request broke off.
    fault: Option<Failure>,
    /// Requests whose answer is not complete.
    active: usize,
    /// When the last of them ended.
    rested: Option<Instant>,
    /// Whether the request that asks for an upgrade got it.
    upgrade: Option<bool>,
    waker: Option<Waker>,
    reset: bool,
}

impl Link {
    /// Counts a request in. Returns its refusal when it stands for a head that was not let through, and how to
    /// remember it.
    pub(super) fn begin(&self) -> (Option<Failure>, Option<Seen>) {
        let mut state = self.state.lock();
        let number = state.begun;
        state.begun += 1;
        let refusal = state.refusal.take_if(|(refused, _)| *refused == number);
        let seen = state.seen.take().filter(|(seen, _)| *seen == number);
        (refusal.map(|(_, failure)| failure), seen.map(|(_, seen)| seen))
    }

    /// The request after `heads` others may be remembered as this one.
    pub(super) fn expect(&self, heads: u64, seen: Seen) {
        self.state.lock().seen = Some((heads, seen));
    }

    /// Whether all of the `heads` requests that were let through have been answered.
    pub(super) fn is_quiet(&self, heads: u64) -> bool {
        let state = self.state.lock();
        state.active == 0 && state.begun == heads
    }

    /// The request after `heads` good ones stands for one that is refused.
    pub(super) fn refuse(&self, heads: u64, failure: Failure) {
        self.state.lock().refusal = Some((heads, failure));
    }

    /// The body that is being read breaks off for this reason.
    pub(super) fn break_body(&self, failure: Failure) {
        self.state.lock().fault = Some(failure);
    }

    /// Why the body broke off, if it was for its syntax.
    pub(super) fn body_fault(&self) -> Option<Failure> {
        self.state.lock().fault.take()
    }

    /// What serves requests may be put away: nothing is under way.
    pub(super) fn park(&self) {
        self.parked.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::park`] was called since this was last asked.
    pub(super) fn take_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed)
    }

    /// Says whether the upgrade that a request asked for was agreed to.
    pub(super) fn decide_upgrade(&self, agreed: bool) {
        let waker = {
            let mut state = self.state.lock();
            state.upgrade = Some(agreed);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What was decided; at most one request waits for it at a time.
    pub(super) fn poll_upgrade(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut state = self.state.lock();
        match state.upgrade.take() {
            Some(agreed) => Poll::Ready(agreed),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The connection must end in a way that nobody takes for the end of a message.
    pub(super) fn reset(&self) {
        self.state.lock().reset = true;
    }

    /// Whether [`Self::reset`] was called.
    pub(super) fn is_reset(&self) -> bool {
        self.state.lock().reset
    }

    /// `None` while a request is active, otherwise when the last one ended.
    pub(super) fn resting_since(&self, start: Instant) -> Option<Instant> {
        let state = self.state.lock();
        (state.active == 0).then(|| state.rested.unwrap_or(start))
    }
}

/// Keeps a connection from counting as idle.
#[derive(Debug)]
pub(super) struct Active {
    link: Arc<Link>,
    clock: Clock,
}

impl Active {
    pub(super) fn new(link: Arc<Link>, clock: Clock) -> Self {
        link.state.lock().active += 1;
        Self { link, clock }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let now = self.clock.now().monotonic;
        let mut state = self.link.state.lock();
        state.active -= 1;
        state.rested = Some(now);
    }
}

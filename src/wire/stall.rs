//! Ends the HTTP/2 streams of clients that take nothing of their answer.
//!
//! A client can close a stream's window and keep its connection alive with pings. hyper then asks the answer's
//! body for nothing, so no time-out in it can fire, and it would hold its connection to the upstream for ever.
//! `outgoing` says whose turn it is; `connection` gives each stream to [`Streams`]. With HTTP/1, `screen` sees
//! that a write does not move.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::types::time::Clock;

/// No more content than this is handed out at once, so that a client that takes a little is seen to.
pub(super) const PIECE: usize = 16 << 10;

tokio::task_local! {
    static TURN: Turn;
}

/// Whose turn it is in the stream that the task serves.
#[derive(Debug)]
struct Turn {
    clock: Clock,
    /// Since when content has been waiting for the client; `None` while the body has none.
    waiting: Cell<Option<Instant>>,
}

/// Says whether the body of the current stream has just handed out content. Does nothing outside one.
pub(super) fn note(handed_out: bool) {
    // Elsewhere than in a stream nobody asks.
    let _ = TURN.try_with(|turn| {
        turn.waiting.set(handed_out.then(|| turn.clock.now().monotonic));
    });
}

/// Runs the streams of a connection. One whose client takes nothing for `idle` is dropped, which resets it
/// (RFC 9113 section 6.4).
#[derive(Debug, Clone)]
pub(super) struct Streams {
    pub(super) clock: Clock,
    pub(super) idle: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let turn = Turn {
            clock: self.clock.clone(),
            waiting: Cell::new(None),
        };
        let watched = Watched {
            stream,
            idle: self.idle,
            timer: None,
        };
        tokio::spawn(TURN.scope(turn, watched));
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        stream: F,
        idle: Duration,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let turn = TURN.with(|turn| Some((turn.waiting.get()?, turn.clock.now().monotonic)));
            let Some((since, now)) = turn else {
                return Poll::Pending;
            };
            let due = since + *this.idle;
            if now >= due {
                tracing::debug!("a client takes nothing of its answer");
                return Poll::Ready(());
            }
            // An earlier deadline may pass first: cheaper than to move the timer with each piece.
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }
}

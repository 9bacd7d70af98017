//! The I/O of a connection with a guard in front: raw HTTP/1 bytes are judged before hyper reads them.
//!
//! A head that is bad, too large or too slow is replaced by one harmless request for which `service` gives
//! the refusal, and nothing is read after it; so answers to requests before it stay in order, and hyper
//! writes and closes. Good bytes are judged where they lie, in hyper's buffer; only parts of heads are kept
//! here. The idle time, the head's time and the time of a write that does not move are measured here too.
//!
//! `framer` decides, `head` and `chunked` know the syntax, `link` leads to the service.

mod chunked;
mod framer;
mod head;

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::mem::{MaybeUninit, replace, take};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::framer::{Fault, Framer};
pub(super) use self::head::{HeadLimits, check_head};
use super::access_log::Ledger;
use super::link::Link;
use super::listener::Slot;
use super::recall::{Recall, Seen};
use crate::config::LimitsConfig;
use crate::types::request::Client;
use crate::types::{Failure, FailureKind};

/// Bytes read at once while a head is incomplete.
const PIECE: usize = 4096;
/// Bytes kept while it is open whether they are HTTP.
const UNDECIDED_BYTES: usize = 64 << 10;
/// After this much silence, what serves requests on the connection is put away until the next one: it has large
/// buffers.
const PARK: Duration = Duration::from_secs(1);
/// How long a peer that is still sending is listened to after the last answer, so that it can read it:
/// closing earlier would make the kernel throw the answer away.
const LINGER: Duration = Duration::from_secs(5);

const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const REFUSED_HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// A byte stream to a peer.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Makes the coming close an abort that the peer can tell from an orderly end.
    fn abort(&self) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// HTTP/1 that is judged.
    Judged,
    /// Another protocol of this proxy: passed on as it is.
    Passing,
    /// The two peers' own protocol after an upgrade: passed on, and not timed.
    Tunnel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overdue {
    Head,
    Idle,
    Write,
    Park,
}

/// See the module.
pub(super) struct Screen<IO: Transport> {
    io: IO,
    mode: Mode,
    framer: Framer,
    /// Bytes read from the peer and not handed on; the first `ready` of them may be.
    stash: BytesMut,
    ready: usize,
    refused: bool,
    broken: bool,
    link: Arc<Link>,
    client: Client,
    ledger: Arc<Ledger>,
    recall: Option<Arc<Recall>>,
    /// Whether hyper has nothing left to write: it flushes only then.
    flushed: bool,
    /// What is left of an answer that hyper knows nothing of; nothing is read before it is gone.
    unsent: Bytes,
    /// What the bytes that are about to be judged may be remembered as.
    seen: Option<Seen>,
    /// Whether what is stashed was read elsewhere and nothing was done with it.
    untried: bool,
    /// Whether nobody serves requests behind this.
    parked: bool,
    /// Whether such an answer may still lie in a buffer of the transport.
    flush_io: bool,
    header_read: Duration,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    /// The number of the incomplete head and when its first byte came.
    head_since: Option<(u64, Instant)>,
    moved: Instant,
    blocked_since: Option<Instant>,
    /// Until when a close that is stuck is waited for.
    closing: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    stop: CancellationToken,
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The place among the connections; an upgraded one keeps it.
    _slot: Option<Slot>,
}

/// What a [`Screen`] needs to know beside its I/O.
pub(super) struct ScreenSetup<'a> {
    pub(super) limits: &'a LimitsConfig,
    pub(super) link: Arc<Link>,
    pub(super) client: Client,
    pub(super) ledger: Arc<Ledger>,
    pub(super) recall: Arc<Recall>,
    pub(super) stop: CancellationToken,
    pub(super) slot: Option<Slot>,
    /// Bytes that were already read from the peer, and when the first one came.
    pub(super) prefix: BytesMut,
    pub(super) since: Instant,
}

impl<IO: Transport> Screen<IO> {
    /// Judges HTTP/1.
    pub(super) fn judging(io: IO, setup: ScreenSetup<'_>) -> Self {
        let mut screen = Self::passing(io, setup);
        screen.mode = Mode::Judged;
        screen.ready = 0;
        screen.untried = !screen.stash.is_empty();
        screen
    }

    /// Hands all bytes on, as HTTP/2 has framing of its own.
    pub(super) fn passing(io: IO, setup: ScreenSetup<'_>) -> Self {
        let idle = setup.limits.idle.0;
        Self {
            io,
            mode: Mode::Passing,
            framer: Framer::new(HeadLimits::new(setup.limits)),
            ready: setup.prefix.len(),
            head_since: (!setup.prefix.is_empty()).then_some((0, setup.since)),
            stash: setup.prefix,
            refused: false,
            broken: false,
            link: setup.link,
            moved: setup.since,
            client: setup.client,
            recall: setup.ledger.is_silent_on_success().then_some(setup.recall),
            ledger: setup.ledger,
            flushed: true,
            unsent: Bytes::new(),
            flush_io: false,
            seen: None,
            untried: false,
            parked: false,
            header_read: setup.limits.header_read.0,
            idle,
            timer: Box::pin(sleep(idle)),
            blocked_since: None,
            closing: None,
            linger: None,
            stop: setup.stop,
            stopped: None,
            _slot: setup.slot,
        }
    }

    fn now(&self) -> Instant {
        self.ledger.clock.now().monotonic
    }

    fn judge_stash(&mut self) {
        let scan = self.framer.scan(&self.stash);
        self.ready = scan.pass;
        self.settle(scan.fault);
    }

    /// Acts on what was found behind the ready bytes.
    fn settle(&mut self, fault: Option<Fault>) {
        match fault {
            Some(Fault::Head(failure)) => self.refuse(failure),
            Some(Fault::Body(failure)) => {
                self.link.break_body(failure);
                self.broken = true;
                self.stash.truncate(self.ready);
            }
            None if self.framer.in_head() && self.stash.len() > self.ready => {
                let number = self.framer.heads();
                if self.head_since.is_none_or(|(head, _)| head != number) {
                    self.head_since = Some((number, self.now()));
                }
            }
            None => self.head_since = None,
        }
    }

    fn refuse(&mut self, failure: Failure) {
        let bad = self.stash[self.ready..].trim_ascii_start();
        let instead = if bad.starts_with(b"HEAD ") {
            REFUSED_HEAD
        } else {
            REFUSED
        };
        self.stash.truncate(self.ready);
        self.stash.extend_from_slice(instead);
        self.ready = self.stash.len();
        self.link.refuse(self.framer.heads(), failure);
        self.refused = true;
        self.head_since = None;
    }

    fn deadline(&self, now: Instant) -> (Instant, Overdue) {
        let never = (now + self.idle.max(Duration::from_secs(1)), Overdue::Idle);
        let write = self
            .blocked_since
            .map(|since| (since + self.idle, Overdue::Write));
        let read = match self.mode {
            Mode::Judged if !self.refused && !self.framer.is_undecided() => match self.head_since {
                Some((_, since)) => Some((since + self.header_read, Overdue::Head)),
                None if self.framer.in_head() && self.unsent.is_empty() => self
                    .link
                    .resting_since(self.moved)
                    .map(|rested| self.rest_deadline(rested.max(self.moved))),
                None => None,
            },
            _ => None,
        };
        [write, read]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
            .unwrap_or(never)
    }

    /// What is due on a connection that has been at rest since `rested`.
    fn rest_deadline(&self, rested: Instant) -> (Instant, Overdue) {
        let may_park = !self.parked && self.flushed && self.link.is_quiet(self.framer.heads());
        if may_park && PARK < self.idle {
            (rested + PARK, Overdue::Park)
        } else {
            (rested + self.idle, Overdue::Idle)
        }
    }

    /// Waits for the next request while nobody serves them, and answers those that can be recalled. Returns
    /// whether there is one; otherwise the connection is over. Safe to drop and to call again.
    pub(super) async fn wait_for_request(&mut self) -> bool {
        self.parked = true;
        let came = poll_fn(|cx| {
            // Not kept while waiting.
            let mut piece = [const { MaybeUninit::uninit() }; PIECE];
            let mut buf = ReadBuf::uninit(&mut piece);
            let read = ready!(self.poll_judged(cx, &mut buf));
            let filled = buf.filled();
            if read.is_err() || filled.is_empty() {
                return Poll::Ready(false);
            }
            self.put_back(filled);
            Poll::Ready(true)
        })
        .await;
        self.parked = false;
        came
    }

    /// Takes back bytes that were handed on and not used.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        let later = replace(&mut self.stash, BytesMut::from(bytes));
        self.stash.extend_from_slice(&later);
        self.ready += bytes.len();
    }

    /// What has taken too long; otherwise sees to it that the task is woken in time.
    fn overdue(&mut self, cx: &mut Context<'_>) -> Option<Overdue> {
        loop {
            let now = self.now();
            let (deadline, what) = self.deadline(now);
            if now >= deadline {
                return Some(what);
            }
            if self.wake_at(deadline, cx).is_pending() {
                return None;
            }
        }
    }

    /// Wakes the task at `deadline`, or before.
    fn wake_at(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_elapsed() || deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }

    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let len = self.ready.min(buf.remaining());
        buf.put_slice(&self.stash[..len]);
        self.stash.advance(len);
        self.ready -= len;
        if self.stash.is_empty() {
            // A long head must not keep its memory for as long as the connection lasts.
            self.stash = BytesMut::new();
        }
    }

    /// Answers `bytes`, which begin with the first byte that was not judged, if they are a request that is known.
    fn recall(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<bool> {
        let Some(recall) = &self.recall else {
            return Ok(false);
        };
        // Nothing else may be under way, for hyper knows nothing of such an answer.
        if !self.flushed || !self.framer.in_head() || !self.link.is_quiet(self.framer.heads()) {
            return Ok(false);
        }
        let Some(seen) = recall.see(bytes, &self.client) else {
            return Ok(false);
        };
        let now = self.ledger.clock.now().monotonic;
        let send = |answer: &[u8]| {
            let wrote = match Pin::new(&mut self.io).poll_write(cx, answer) {
                Poll::Ready(wrote) => wrote?,
                Poll::Pending => 0,
            };
            io::Result::Ok(Bytes::copy_from_slice(&answer[wrote..]))
        };
        if let Some(unsent) = recall.answer(&seen, now, &self.ledger, send) {
            self.unsent = unsent?;
            self.flush_io = true;
            self.moved = now;
            return Ok(true);
        }
        self.seen = recall.is_repeated(&seen).then_some(seen);
        Ok(false)
    }

    /// Has what was seen remembered, if it turned out to be one request and nothing else: `heads` had passed before,
    /// and `whole` says whether all of it has passed now.
    fn expect(&mut self, heads: u64, whole: bool) {
        let one = whole && self.framer.heads() == heads + 1 && self.framer.in_head();
        if let Some(seen) = self.seen.take().filter(|_| one) {
            self.link.expect(heads, seen);
        }
    }

    /// Reads from the peer, either straight into `buf` or behind what is stashed, and judges it. `Ready`
    /// with `true` is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        if self.stash.is_empty() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.recall(cx, fresh)? {
                buf.set_filled(before);
                return Poll::Ready(Ok(false));
            }
            let (heads, length) = (self.framer.heads(), fresh.len());
            let scan = self.framer.scan(fresh);
            self.stash.extend_from_slice(&fresh[scan.pass..]);
            let whole = scan.pass == length;
            buf.set_filled(before + scan.pass);
            self.settle(scan.fault);
            self.expect(heads, whole);
        } else {
            let mut piece = [const { MaybeUninit::uninit() }; PIECE];
            let mut piece = ReadBuf::uninit(&mut piece);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(true));
            }
            self.stash.extend_from_slice(piece.filled());
            self.judge_stash();
        }
        self.moved = self.now();
        Poll::Ready(Ok(false))
    }

    /// Sends what is left of an answer from memory.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let wrote = Pin::new(&mut self.io).poll_write(cx, &self.unsent);
            match ready!(self.note_write(cx, wrote))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                wrote => self.unsent.advance(wrote),
            }
        }
        if self.flush_io {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flush_io = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_judged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            ready!(self.poll_unsent(cx))?;
            if take(&mut self.untried) {
                let first = take(&mut self.stash);
                if self.recall(cx, &first)? {
                    self.head_since = None;
                    continue;
                }
                self.stash = first;
                let heads = self.framer.heads();
                self.judge_stash();
                self.expect(heads, self.ready == self.stash.len());
            }
            if self.ready > 0 {
                self.hand_over(buf);
            }
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if self.framer.is_undecided()
                && let Poll::Ready(agreed) = self.link.poll_upgrade(cx)
            {
                if agreed {
                    self.mode = Mode::Tunnel;
                    self.ready = self.stash.len();
                    return self.poll_passed(cx, buf);
                }
                self.framer.resume();
                self.judge_stash();
                continue;
            }
            let full = self.framer.is_undecided() && self.stash.len() >= UNDECIDED_BYTES;
            if !self.refused
                && !full
                && let Poll::Ready(end) = self.poll_fill(cx, buf)?
            {
                if end {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match self.overdue(cx) {
                None => return Poll::Pending,
                Some(Overdue::Idle) => return Poll::Ready(Ok(())),
                Some(Overdue::Park) => {
                    self.link.park();
                    return Poll::Pending;
                }
                Some(Overdue::Write) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Some(Overdue::Head) => self.refuse(Failure::new(
                    FailureKind::RequestTimeout,
                    format!(
                        "the request head took longer than {} ms",
                        self.header_read.as_millis()
                    ),
                )),
            }
        }
    }

    fn poll_passed(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ready > 0 {
            self.hand_over(buf);
            return Poll::Ready(Ok(()));
        }
        if self.mode == Mode::Tunnel {
            let stop = &self.stop;
            let stopped = self
                .stopped
                .get_or_insert_with(|| Box::pin(stop.clone().cancelled_owned()));
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }

    fn note_write(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.mode == Mode::Tunnel {
            return wrote;
        }
        match wrote {
            Poll::Ready(result) => {
                self.blocked_since = None;
                self.moved = self.now();
                Poll::Ready(result)
            }
            Poll::Pending => {
                let now = self.now();
                self.blocked_since.get_or_insert(now);
                match self.overdue(cx) {
                    Some(Overdue::Write) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    _ => Poll::Pending,
                }
            }
        }
    }

    /// Whether the peer may have sent what nobody has read.
    fn is_mid_message(&self) -> bool {
        self.mode == Mode::Judged
            && (self.refused || self.broken || !self.stash.is_empty() || !self.framer.in_head())
    }
}

impl<IO: Transport> AsyncRead for Screen<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.mode {
            Mode::Judged => this.poll_judged(cx, buf),
            Mode::Passing | Mode::Tunnel => this.poll_passed(cx, buf),
        }
    }
}

impl<IO: Transport> AsyncWrite for Screen<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.flushed = false;
        let wrote = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note_write(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.flushed = false;
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note_write(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if !self.flushed {
            self.flushed = true;
            // hyper may not read again before there is something: only now does the rest begin.
            let (deadline, _) = self.deadline(self.moved);
            if self.wake_at(deadline, cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            let unsent = this.poll_unsent(cx)?.is_pending();
            if unsent || Pin::new(&mut this.io).poll_shutdown(cx)?.is_pending() {
                let idle = this.idle;
                let until = this.closing.get_or_insert_with(|| Box::pin(sleep(idle)));
                ready!(until.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if !this.is_mid_message() {
                return Poll::Ready(Ok(()));
            }
        }
        let until = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut piece = [0; PIECE];
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut unread = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut unread)) {
                Ok(()) if !unread.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO: Transport> Drop for Screen<IO> {
    fn drop(&mut self) {
        if self.link.is_reset() {
            self.io.abort();
        }
    }
}

//! Follows the framing of an HTTP/1 byte stream: head, body, head, … (RFC 9112 section 6).
//!
//! A pure core: bytes go in, out comes how many of them may be handed to the HTTP implementation and what
//! is wrong with the next one. A head is let through when it is whole and good, a body as it comes.
//! `head` judges the lines of a head, `chunked` the syntax of a chunked body; `screen` does the I/O.

use super::chunked::Chunks;
use super::head::{Framing, Head, HeadLimits};
use crate::types::Failure;

/// What a message in the stream is at.
#[derive(Debug)]
enum State {
    /// In a head, or before one.
    Head,
    /// In a body of which so many bytes are missing.
    Sized(u64),
    /// In a chunked body.
    Chunked(Chunks),
    /// After a request that asks for an upgrade: what follows may not be HTTP.
    Undecided,
    /// Something was wrong; nothing more is let through.
    Broken,
}

/// Why no further byte may pass.
#[derive(Debug)]
pub(super) enum Fault {
    /// A head cannot be served; no byte of it has passed.
    Head(Failure),
    /// A body breaks off in the middle of nonsense; its head has passed.
    Body(Failure),
}

/// The judgement over the bytes that have not passed yet.
#[derive(Debug)]
pub(super) struct Scan {
    /// So many bytes from the front may pass.
    pub(super) pass: usize,
    /// What is wrong with the byte or the head after those.
    pub(super) fault: Option<Fault>,
}

/// The framing state of one direction of a connection.
#[derive(Debug)]
pub(super) struct Framer {
    limits: HeadLimits,
    state: State,
    head: Head,
    upgrade: bool,
    heads: u64,
}

impl Framer {
    pub(super) fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Head::default(),
            upgrade: false,
            heads: 0,
        }
    }

    /// How many heads have passed.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether the next byte belongs to a head.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Whether it must be decided first ([`Self::resume`]) if what follows is HTTP.
    pub(super) fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// The upgrade was not agreed to: what follows is the next request.
    pub(super) fn resume(&mut self) {
        if self.is_undecided() {
            self.state = State::Head;
        }
    }

    /// Judges `bytes`, which begin with the first byte that has not passed: the same ones again as last
    /// time, and those that came since. Does not look at a byte of a head twice.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut pass = 0;
        let fault = loop {
            let rest = &bytes[pass..];
            match &mut self.state {
                State::Head => match self.head.scan(rest, &self.limits) {
                    Ok(None) => break None,
                    Ok(Some(done)) => {
                        pass += done.len;
                        self.heads += 1;
                        self.head = Head::default();
                        self.upgrade = done.upgrade;
                        match done.framing {
                            Framing::Nothing => self.end_message(),
                            Framing::Sized(length) => self.state = State::Sized(length),
                            Framing::Chunked => self.state = State::Chunked(Chunks::new(&self.limits)),
                        }
                    }
                    Err(failure) => {
                        self.state = State::Broken;
                        break Some(Fault::Head(failure));
                    }
                },
                State::Sized(missing) => {
                    let here = usize::try_from(*missing).unwrap_or(usize::MAX).min(rest.len());
                    *missing -= here as u64;
                    pass += here;
                    if *missing > 0 {
                        break None;
                    }
                    self.end_message();
                }
                State::Chunked(chunks) => {
                    let (here, end) = chunks.scan(rest);
                    pass += here;
                    match end {
                        Ok(true) => self.end_message(),
                        Ok(false) => break None,
                        Err(failure) => {
                            self.state = State::Broken;
                            break Some(Fault::Body(failure));
                        }
                    }
                }
                State::Undecided | State::Broken => break None,
            }
        };
        Scan { pass, fault }
    }

    fn end_message(&mut self) {
        self.state = if self.upgrade {
            State::Undecided
        } else {
            State::Head
        };
    }
}

//! Answers a request that is byte for byte one that was answered from memory before, without parsing it.
//!
//! A client on a kept connection sends the same head again and again. `screen` shows each head that is whole in
//! one read; when the stack has answered it from memory, `service` leaves the answer's fixed fields here, written
//! out. The next time, the cache is asked whether the stored answer is still good and for what changed, and
//! `screen` sends it. Requests are known by a keyed digest, so no credential is kept. The table is bounded: a
//! request takes the place of the one that shares its slot.

use std::cell::RefCell;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwapOption;
use http::header::{AGE, CONNECTION, CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use super::access_log::Ledger;
use super::stall::PIECE;
use crate::types::outcome::{CacheOutcome, RouteClass};
use crate::types::repeat::{Repeat, Repeatable};
use crate::types::request::Client;
use crate::types::{Body, Outcome};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Requests that are remembered.
const SLOTS: usize = 4096;
/// The longest head that is.
const LONGEST: usize = 4096;

/// A request that may be remembered: the digest of its bytes and of what the connection adds to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen([u8; 32]);

impl Seen {
    fn slot(&self) -> usize {
        usize::from(u16::from_le_bytes([self.0[0], self.0[1]])) % SLOTS
    }
}

/// The answers by request.
#[derive(Debug)]
pub(super) struct Recall {
    key: [u8; 32],
    slots: Box<[ArcSwapOption<Memo>]>,
    /// Part of the digest of the last request of each slot: only what comes twice is remembered.
    last: Box<[AtomicU32]>,
}

#[derive(Debug)]
struct Memo {
    seen: Seen,
    /// Status line and fields, but for those that change.
    head: Vec<u8>,
    class: RouteClass,
    status: u16,
    answer: Arc<dyn Repeat>,
}

thread_local! {
    /// The answer that is being written, and its `Cache-Status`.
    static SCRATCH: RefCell<(Vec<u8>, String)> = const { RefCell::new((Vec::new(), String::new())) };
}

impl Recall {
    /// An empty table with a key of its own.
    pub(super) fn new() -> Self {
        let random = ahash::RandomState::new();
        let mut seed = [0; 32];
        for (i, word) in seed.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&random.hash_one(i).to_le_bytes());
        }
        Self {
            key: seed,
            slots: (0..SLOTS).map(|_| ArcSwapOption::empty()).collect(),
            last: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Whether `bytes` may be one whole request that can be remembered, and which.
    pub(super) fn see(&self, bytes: &[u8], client: &Client) -> Option<Seen> {
        if bytes.len() > LONGEST || !bytes.starts_with(b"GET ") || !bytes.ends_with(b"\r\n\r\n") {
            return None;
        }
        let mut digest = blake3::Hasher::new_keyed(&self.key);
        digest.update(&[u8::from(client.tls), u8::from(client.trusted)]);
        digest.update(bytes);
        Some(Seen(*digest.finalize().as_bytes()))
    }

    /// Gives the whole answer to `send` if it is still known, and counts it.
    pub(super) fn answer<T>(
        &self,
        seen: &Seen,
        now: Instant,
        ledger: &Ledger,
        send: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        let memo = self.slots[seen.slot()].load();
        let memo = memo.as_ref().filter(|memo| memo.seen == *seen)?;
        SCRATCH.with_borrow_mut(|(bytes, cache_status)| {
            cache_status.clear();
            let again = memo.answer.again(now, cache_status)?;
            bytes.clear();
            bytes.extend_from_slice(&memo.head);
            // Writing into a Vec cannot fail.
            let _ = write!(
                bytes,
                "Age: {}\r\nCache-Status: {cache_status}\r\n\r\n",
                again.age
            );
            bytes.extend_from_slice(&again.body);
            ledger.count_recalled(memo.class, memo.status, again.body.len());
            Some(send(bytes))
        })
    }

    /// Whether `seen` comes for the second time or more.
    pub(super) fn is_repeated(&self, seen: &Seen) -> bool {
        let Seen([_, _, a, b, c, d, ..]) = *seen;
        let part = u32::from_le_bytes([a, b, c, d]);
        self.last[seen.slot()].swap(part, Ordering::Relaxed) == part
    }

    /// Remembers what the stack answered to `seen`.
    pub(super) fn remember(&self, seen: Seen, response: &Response<Body>, repeatable: Repeatable) {
        let Some(outcome) = response.extensions().get::<Outcome>() else {
            return;
        };
        let short = matches!(response.body(), Body::Full(bytes) if bytes.len() <= PIECE);
        let fields = response.headers();
        // Errors are logged one by one; hyper itself adds a date, which changes.
        if !short || response.status() >= StatusCode::BAD_REQUEST || !fields.contains_key(DATE) {
            return;
        }
        debug_assert_eq!(outcome.cache, CacheOutcome::Hit);
        self.slots[seen.slot()].store(Some(Arc::new(Memo {
            seen,
            head: head(response),
            class: outcome.class,
            status: response.status().as_u16(),
            answer: repeatable.0,
        })));
    }
}

/// Status line and fields as hyper writes them, without `Age` and this cache's own member of `Cache-Status`.
fn head(response: &Response<Body>) -> Vec<u8> {
    let mut text = b"HTTP/1.1 ".to_vec();
    let status = response.status();
    text.extend_from_slice(status.as_str().as_bytes());
    text.push(b' ');
    match response.extensions().get::<ReasonPhrase>() {
        Some(reason) => text.extend_from_slice(reason.as_bytes()),
        None => text.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes()),
    }
    text.extend_from_slice(b"\r\n");
    let fields = response.headers();
    let others = fields.get_all(CACHE_STATUS).iter().count().saturating_sub(1);
    for name in fields.keys().filter(|name| **name != AGE) {
        let kept = if *name == CACHE_STATUS { others } else { usize::MAX };
        for value in fields.get_all(name).iter().take(kept) {
            field(&mut text, name, value.as_bytes());
        }
    }
    if let (false, Body::Full(body)) = (fields.contains_key(CONTENT_LENGTH), response.body()) {
        field(&mut text, &CONTENT_LENGTH, body.len().to_string().as_bytes());
    }
    text
}

/// One field line, its name with capitals as [`title_case_headers`](hyper::server::conn::http1::Builder) has it.
fn field(text: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let mut capital = true;
    for byte in name.as_str().bytes() {
        text.push(if capital { byte.to_ascii_uppercase() } else { byte });
        capital = byte == b'-';
    }
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

/// Whether a request with these fields may be remembered: its answer must not end the connection.
pub(super) fn keeps_connection(fields: &HeaderMap) -> bool {
    let mut options = fields.get_all(CONNECTION).iter();
    options.all(|option| option.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

//! What people are shown of a replica and nothing is decided by: how fast it answered lately, and what went wrong last.
//!
//! Nothing of a request is kept, only times and sentences of this program.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::metrics;
use crate::types::Failure;
use crate::types::latency::Recent;

/// Times to the first byte are kept for this long at least and twice as long at most.
const WINDOW: Duration = Duration::from_secs(30);

/// How long answers took to begin, those of the last minute or so that were neither 502 nor 503 nor 504.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct FirstByte {
    /// How many there were.
    pub answers: u64,
    /// Half of them took no longer, in milliseconds; at most 1.6 % too much.
    pub p50_ms: f64,
    /// 99 % of them took no longer, in milliseconds; at most 1.6 % too much.
    pub p99_ms: f64,
}

/// What went wrong last, if it was the replica's doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LastError {
    /// `connect_failed`, `connect_timeout`, `timeout`, `reset`, `status` or `probe`.
    pub kind: &'static str,
    /// A sentence of this program.
    pub detail: Cow<'static, str>,
    /// How long ago it was.
    pub seconds_ago: u64,
}

/// What was seen of one replica.
pub(super) struct Observed {
    first_byte: Mutex<Recent>,
    wrong: Mutex<Option<Wrong>>,
}

struct Wrong {
    kind: &'static str,
    detail: Cow<'static, str>,
    at: Instant,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            first_byte: Mutex::new(Recent::new(WINDOW)),
            wrong: Mutex::default(),
        }
    }
}

impl Observed {
    /// An answer began after `time`.
    pub(super) fn answered(&self, time: Duration, now: Instant) {
        self.first_byte.lock().record(time, now);
    }

    /// An exchange ended with `failure`.
    pub(super) fn failed(&self, failure: &Failure, now: Instant) {
        self.went_wrong(metrics::word(failure.kind), failure.detail.clone(), now);
    }

    /// The replica answered that it cannot.
    pub(super) fn refused(&self, status: StatusCode, now: Instant) {
        self.went_wrong("status", format!("the answer is {status}").into(), now);
    }

    /// A probe was not answered well.
    pub(super) fn probe_failed(&self, why: Cow<'static, str>, now: Instant) {
        self.went_wrong("probe", why, now);
    }

    fn went_wrong(&self, kind: &'static str, detail: Cow<'static, str>, at: Instant) {
        *self.wrong.lock() = Some(Wrong { kind, detail, at });
    }

    pub(super) fn first_byte(&self, now: Instant) -> Option<FirstByte> {
        let recent = self.first_byte.lock();
        let millis = |quantile| Some(recent.quantile(quantile, now)?.as_secs_f64() * 1000.0);
        Some(FirstByte {
            answers: recent.count(now),
            p50_ms: millis(0.5)?,
            p99_ms: millis(0.99)?,
        })
    }

    pub(super) fn last_error(&self, now: Instant) -> Option<LastError> {
        let wrong = self.wrong.lock();
        wrong.as_ref().map(|wrong| LastError {
            kind: wrong.kind,
            detail: wrong.detail.clone(),
            seconds_ago: now.saturating_duration_since(wrong.at).as_secs(),
        })
    }
}

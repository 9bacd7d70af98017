//! One record per request: when it is over, it becomes a line of the access log and counts in the metrics.
//!
//! Never in a line: a field's value (but the trace id), the path, the query. `service` fills the record in,
//! `outgoing` closes it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Method, Version};
use tokio::time::Instant;

use super::link::Active;
use super::metrics::{GaugeGuard, Phase, WireMetrics};
use crate::config::{AccessLog, LogConfig};
use crate::types::Outcome;
use crate::types::outcome::{CacheOutcome, Known, Phases, RouteClass};
use crate::types::time::Clock;

/// The status in the log of a request that nobody waited for.
const CLIENT_GONE: u16 = 499;

/// Where records go.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) metrics: WireMetrics,
    pub(super) clock: Clock,
    access: AccessLog,
    sample: f64,
    seen: AtomicU64,
}

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was handed to the connection.
    Completed,
    /// Its source broke off.
    Failed,
    /// The client left.
    Cancelled,
}

/// What is known about one request; dropping it writes it down.
#[derive(Debug)]
pub(super) struct Record {
    ledger: Arc<Ledger>,
    started: Instant,
    peer: IpAddr,
    method: Method,
    version: Version,
    trace: Option<String>,
    pub(super) status: u16,
    pub(super) outcome: Option<Outcome>,
    /// What is known if no answer comes.
    pub(super) known: Known,
    pub(super) bytes: u64,
    pub(super) end: End,
    pub(super) stream: Option<GaugeGuard>,
    _active: Active,
}

impl Ledger {
    pub(super) fn new(metrics: WireMetrics, clock: Clock, log: &LogConfig) -> Self {
        Self {
            metrics,
            clock,
            access: log.access,
            sample: log.access_sample.0,
            seen: AtomicU64::new(0),
        }
    }

    /// Whether a request with this end gets a line.
    fn writes(&self, status: u16, end: End) -> bool {
        let error = status >= 400 || end != End::Completed;
        match self.access {
            AccessLog::Off => false,
            AccessLog::Errors => error,
            AccessLog::Sampled => error || self.is_sampled(),
            AccessLog::All => true,
        }
    }

    /// Whether every request that is answered well goes without a line.
    pub(super) fn is_silent_on_success(&self) -> bool {
        matches!(self.access, AccessLog::Off | AccessLog::Errors)
    }

    /// Counts a request that was answered from memory before it was parsed; its time is next to nothing.
    pub(super) fn count_recalled(&self, class: RouteClass, status: u16, bytes: usize) {
        self.metrics.count_request(Some(class), CacheOutcome::Hit, status);
        self.metrics.observe(Some(class), Phase::Total, Duration::ZERO);
        self.metrics.count_sent(bytes as u64);
    }

    /// True for the requests at which the share of all so far passes the next whole number.
    fn is_sampled(&self) -> bool {
        let before = self.seen.fetch_add(1, Ordering::Relaxed) as f64;
        ((before + 1.0) * self.sample).floor() > (before * self.sample).floor()
    }
}

impl Record {
    pub(super) fn new(ledger: &Arc<Ledger>, active: Active, peer: IpAddr, request: &Parts) -> Self {
        Self {
            started: ledger.clock.now().monotonic,
            peer,
            method: request.method.clone(),
            version: request.version,
            trace: match ledger.access {
                AccessLog::Off => None,
                _ => trace_id(&request.headers),
            },
            status: CLIENT_GONE,
            outcome: None,
            known: Known::default(),
            bytes: 0,
            end: End::Cancelled,
            stream: None,
            ledger: ledger.clone(),
            _active: active,
        }
    }

    fn class(&self) -> Option<RouteClass> {
        self.outcome.map(|outcome| outcome.class)
    }

    fn write_line(&self, took: Duration) {
        let phases = self
            .outcome
            .map_or_else(Phases::default, |outcome| outcome.phases);
        // To the microsecond: more digits are noise.
        let milliseconds = |time: Duration| time.as_micros() as f64 / 1e3;
        tracing::info!(
            target: "access",
            peer = %self.peer,
            method = %self.method,
            route = self.outcome.map_or("-", |outcome| outcome.template),
            class = self.class().map_or("none", RouteClass::as_str),
            cache = self.outcome.map_or(CacheOutcome::None, |outcome| outcome.cache).as_str(),
            status = self.status,
            bytes = self.bytes,
            ms = milliseconds(took),
            queue_ms = milliseconds(phases.queue),
            connect_ms = milliseconds(phases.connect),
            first_byte_ms = milliseconds(phases.first_byte),
            principal = self.outcome.and_then(|outcome| outcome.principal).map(|who| who.prefix()),
            trace = self.trace,
            version = ?self.version,
            end = match self.end {
                End::Completed => "completed",
                End::Failed => "failed",
                End::Cancelled => "cancelled",
            },
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.outcome = self.outcome.or_else(|| self.known.get());
        let took = self
            .ledger
            .clock
            .now()
            .monotonic
            .saturating_duration_since(self.started);
        let metrics = &self.ledger.metrics;
        let cache = self.outcome.map_or(CacheOutcome::None, |outcome| outcome.cache);
        metrics.count_request(self.class(), cache, self.status);
        metrics.observe(self.class(), Phase::Total, took);
        if let Some(outcome) = self.outcome
            && !matches!(
                cache,
                CacheOutcome::Hit | CacheOutcome::Stale | CacheOutcome::None
            )
        {
            metrics.observe(self.class(), Phase::Queue, outcome.phases.queue);
            metrics.observe(self.class(), Phase::Connect, outcome.phases.connect);
            metrics.observe(self.class(), Phase::FirstByte, outcome.phases.first_byte);
        }
        metrics.count_sent(self.bytes);
        if self.ledger.writes(self.status, self.end) {
            self.write_line(took);
        }
    }
}

/// The trace id of a `traceparent` field that is well-formed (W3C Trace Context section 3.2.2).
fn trace_id(headers: &HeaderMap) -> Option<String> {
    static NAME: OnceLock<http::HeaderName> = OnceLock::new();
    let name = NAME.get_or_init(|| http::HeaderName::from_static("traceparent"));
    let text = headers.get(name)?.to_str().ok()?;
    let mut parts = text.split('-');
    let lengths = [2, 32, 16, 2];
    let well_formed = text.len() == 55
        && lengths.iter().all(|length| {
            parts.next().is_some_and(|part| {
                part.len() == *length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
        });
    let id = well_formed.then(|| &text[3..35])?;
    (id.bytes().any(|byte| byte != b'0')).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(access: AccessLog, share: f64) -> Ledger {
        let metrics = WireMetrics::register(&prometheus::Registry::new()).unwrap();
        let log = LogConfig {
            access,
            access_sample: crate::types::units::Ratio(share),
            ..LogConfig::default()
        };
        Ledger::new(metrics, Clock::System, &log)
    }

    #[test]
    fn each_level_writes_what_its_documentation_says() {
        let fine = (200, End::Completed);
        let lines = |access| {
            let ledger = ledger(access, 0.0);
            [
                fine,
                (404, End::Completed),
                (200, End::Failed),
                (200, End::Cancelled),
            ]
            .map(|(status, end)| ledger.writes(status, end))
        };
        assert_eq!(lines(AccessLog::Off), [false; 4]);
        assert_eq!(lines(AccessLog::Errors), [false, true, true, true]);
        assert_eq!(lines(AccessLog::Sampled), [false, true, true, true]);
        assert_eq!(lines(AccessLog::All), [true; 4]);
    }

    #[test]
    fn sampling_writes_exactly_its_share() {
        for (share, expected) in [(0.0, 0), (0.01, 10), (0.25, 250), (1.0, 1000)] {
            let ledger = ledger(AccessLog::Sampled, share);
            let written = (0..1000).filter(|_| ledger.writes(200, End::Completed)).count();
            assert_eq!(written, expected, "{share}");
        }
    }

    #[test]
    fn only_a_well_formed_trace_id_is_taken() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            trace_id(&headers)
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for wrong in [
            String::new(),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{id}-00f067aa0ba902b7-01-x"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            "app-Secret0123456789app-Secret0123456789app-Secret01234".into(),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_trace_id_is_32_hexadecimal_digits_or_nothing(text in "[ -~]{0,60}") {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            if let Some(id) = trace_id(&headers) {
                prop_assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}

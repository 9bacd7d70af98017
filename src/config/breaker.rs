//! `circuit_breaker`: when a replica that fails too often is no longer asked, and how it is tried again.

use serde::{Deserialize, Serialize};

use crate::types::units::{Ratio, Span};

/// The circuit breaker that each replica of each upstream has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Whether there is one. Default true.
    pub enabled: bool,
    /// Share of failures among the results of the window at which it opens. Default 50%.
    pub failure_threshold: Ratio,
    /// Results in the window below which it does not open. Default 20.
    pub request_volume: u32,
    /// How long a result counts. Default 60s.
    pub window: Span,
    /// How long an open one lets nobody through; doubled with each trial that fails, up to 5m. Default 30s.
    pub sleep_window: Span,
    /// Trials at once after that. Default 1.
    pub half_open_requests: u32,
    /// Trials in a row that must succeed. Default 3.
    pub close_after: u32,
    /// Whether an answer of status 500 is a failure, as 502, 503 and 504 are. Default false: Dify gives it for
    /// faults of an app or a model, which another replica would repeat.
    pub count_500: bool,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: Ratio(0.5),
            request_volume: 20,
            window: Span::secs(60),
            sleep_window: Span::secs(30),
            half_open_requests: 1,
            close_after: 3,
            count_500: false,
        }
    }
}

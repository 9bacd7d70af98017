//! `upstreams.NAME.retry` and `upstreams.NAME.hedge`: when a request is made again, or a second time.
//!
//! Only before the first byte of an answer, and a write of which a byte was sent never.

use serde::{Deserialize, Serialize};

use crate::types::units::{Ratio, Span};

/// How what failed is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Attempts of one request, the first one included; 1: nothing is tried again. Default 3.
    pub attempts: u32,
    /// The most retries, as a share of the requests of the last 10 s; 3 a second are always allowed. What is beyond
    /// fails as it failed first. Default 20%.
    pub budget: Ratio,
    /// The longest wait before the first retry, doubled with each further one; the wait is drawn between nothing and
    /// this. Default 25ms.
    pub backoff: Span,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget: Ratio(0.2),
            backoff: Span::millis(25),
        }
    }
}

/// Whether slow reads are asked a second time, at another replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HedgeConfig {
    /// Whether they are. Default false.
    pub enabled: bool,
    /// The most second requests, as a share of the reads of the last 10 s that could have one. Default 5%.
    pub budget: Ratio,
    /// A read is asked again once it waits for longer than so many percent of its class did lately. Default 95.
    pub percentile: u32,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            budget: Ratio(0.05),
            percentile: 95,
        }
    }
}

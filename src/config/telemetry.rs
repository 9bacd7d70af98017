//! `log`: how the process speaks of itself.

use serde::{Deserialize, Serialize};

use crate::types::units::Ratio;

/// Logging.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// A `tracing` filter such as `info` or `dify_edge::routing=debug`. Default `info`.
    pub level: String,
    /// The access log: `off`, `errors` (status 400 and up), `sampled` or `all`. Default `errors`.
    pub access: AccessLog,
    /// Share of requests that `sampled` writes. Default 1%.
    pub access_sample: Ratio,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
            access: AccessLog::Errors,
            access_sample: Ratio(0.01),
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which requests get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// None.
    Off,
    /// Those answered with 400 or above, and those that were cut off.
    Errors,
    /// A share of all, and every error.
    Sampled,
    /// All.
    All,
}

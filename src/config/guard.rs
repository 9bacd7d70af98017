//! `guard`: what does not exist is answered before it reaches dify-api.
//!
//! Whether that is done, how large the filters are, where it is known from what exists, and what clients may ask that
//! nobody knows.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::units::{Ratio, Span};

/// The guard.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// `off`, `observe` (refuse nothing, count what would have been) or `enforce`. Default `observe`; without the
    /// section `guard` it is off.
    pub mode: GuardMode,
    /// How many things of one kind a filter is made for; it grows when there are more. Default 1000000.
    pub expected_items: u64,
    /// The share of missing things that is taken for existing. Default 1%.
    pub false_positive_rate: Ratio,
    /// Where it is known from what exists. Default: Dify's answers alone, with which nothing is refused.
    pub sources: Vec<SourceConfig>,
    /// The URL of the source `postgres` when it does not stand there, as for one from the environment.
    pub database_url: Option<String>,
    /// How long a kind may be refused by after its source was last heard of. Default 15m.
    pub max_age: Span,
    /// How many missing things are looked up one by one in a second, for they may be new. Default 200; 0: none.
    pub lookups_per_second: u32,
    /// How many things that nobody knows one client may ask for in a minute. Default 600.
    pub unknown_per_minute: u32,
    /// Remembered answers "not found".
    pub not_found: NotFoundConfig,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            mode: GuardMode::Observe,
            expected_items: 1_000_000,
            false_positive_rate: Ratio(0.01),
            sources: vec![SourceConfig::Learned(LearnedConfig {})],
            database_url: None,
            max_age: Span::secs(15 * 60),
            lookups_per_second: 200,
            unknown_per_minute: 600,
            not_found: NotFoundConfig::default(),
        }
    }
}

impl GuardConfig {
    /// The source `postgres` with its URL, when there is one.
    pub fn postgres(&self) -> Option<(&PostgresConfig, &str)> {
        self.sources.iter().find_map(|source| match source {
            SourceConfig::Postgres(postgres) => {
                let url = postgres.url.as_deref().or(self.database_url.as_deref())?;
                Some((postgres, url))
            }
            SourceConfig::Learned(_) => None,
        })
    }
}

impl fmt::Debug for GuardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart, so that a new key cannot be forgotten here.
        let Self {
            mode,
            expected_items,
            false_positive_rate,
            sources,
            database_url,
            max_age,
            lookups_per_second,
            unknown_per_minute,
            not_found,
        } = self;
        f.debug_struct("GuardConfig")
            .field("mode", mode)
            .field("expected_items", expected_items)
            .field("false_positive_rate", false_positive_rate)
            .field("sources", sources)
            .field("database_url", &database_url.as_ref().map(|_| "***"))
            .field("max_age", max_age)
            .field("lookups_per_second", lookups_per_second)
            .field("unknown_per_minute", unknown_per_minute)
            .field("not_found", not_found)
            .finish()
    }
}

/// What is done about requests for what does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Nothing.
    Off,
    /// They are counted, and go on.
    Observe,
    /// They are refused.
    Enforce,
}

/// Where it is known from what exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SourceConfig {
    /// Dify's answers. They never tell everything, so nothing is refused by them alone.
    Learned(LearnedConfig),
    /// Dify's database.
    Postgres(PostgresConfig),
}

impl SourceConfig {
    /// The `type` that it is written with.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Learned(_) => "learned",
            Self::Postgres(_) => "postgres",
        }
    }
}

/// Dify's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedConfig {}

/// Dify's database, read and never written. `Debug` does not show the URL.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// `postgres://user[:password]@host[:port]/database[?sslmode=require]`; without it `guard.database_url`.
    pub url: Option<String>,
    /// How often what is new is fetched. Default 5s.
    pub refresh: Span,
    /// How often everything is read again. Default 1h.
    pub rebuild: Span,
    /// How many connections the role may have. Default 5.
    pub connections: usize,
    /// Share of `connections` that is used. Default 80%.
    pub pool_share: Ratio,
    /// A PEM file with the authorities to trust for TLS, in place of the system's.
    pub ca: Option<PathBuf>,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            url: None,
            refresh: Span::secs(5),
            rebuild: Span::secs(3600),
            connections: 5,
            pool_share: Ratio(0.8),
            ca: None,
        }
    }
}

impl PostgresConfig {
    /// Connections at once; at least one.
    pub fn usable(&self) -> usize {
        ((self.connections as f64 * self.pool_share.0) as usize).max(1)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            url,
            refresh,
            rebuild,
            connections,
            pool_share,
            ca,
        } = self;
        f.debug_struct("PostgresConfig")
            .field("url", &url.as_ref().map(|_| "***"))
            .field("refresh", refresh)
            .field("rebuild", rebuild)
            .field("connections", connections)
            .field("pool_share", pool_share)
            .field("ca", ca)
            .finish()
    }
}

/// Answers "not found" that are remembered exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotFoundConfig {
    /// For how long. Default 5s; 0s: not at all.
    pub ttl: Span,
}

impl Default for NotFoundConfig {
    fn default() -> Self {
        Self { ttl: Span::secs(5) }
    }
}

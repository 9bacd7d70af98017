//! The guard as it is configured, and what it does beside requests.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bloom::Sizing;
use super::known::{Known, OnGone};
use super::known_ids::peers::Peers;
use super::known_ids::postgres::{Postgres, PostgresOptions};
use super::lookups::Lookups;
use super::metrics::GuardMetrics;
use super::service::GuardLayer;
use super::verdict::{Limits, Shared};
use crate::config::cache::RedisConfig;
use crate::config::guard::{GuardConfig, GuardMode, PostgresConfig, SourceConfig};
use crate::types::time::Clock;

/// The longest that the database is waited for, one statement.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What goes on beside requests: reading the database, and what instances tell each other.
#[must_use]
#[derive(Default)]
pub struct Background {
    postgres: Option<Arc<Postgres<Known>>>,
    peers: Option<Arc<Peers>>,
}

impl Background {
    /// Starts it; it ends with `stop`.
    pub fn spawn(self, stop: &CancellationToken, tracker: &TaskTracker) {
        if let Some(peers) = self.peers {
            tracker.spawn(peers.run(stop.clone()));
        }
        let Some(postgres) = self.postgres else { return };
        let stop = stop.clone();
        tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = postgres.run() => {}
            }
        });
    }
}

impl GuardLayer {
    /// The guard that `config` wants; with a `redis`, instances tell each other there what they learn. `on_gone` is told
    /// of kinds of which something has been deleted in the database.
    ///
    /// # Errors
    /// When the database's URL or the Redis cannot be used.
    pub fn new(
        config: Option<&GuardConfig>,
        redis: Option<&RedisConfig>,
        clock: &Clock,
        metrics: GuardMetrics,
        on_gone: OnGone,
    ) -> Result<(Self, Background), String> {
        let Some(config) = config.filter(|config| config.mode != GuardMode::Off) else {
            return Ok((Self::off(), Background::default()));
        };
        let sizing = Sizing {
            expected_items: usize::try_from(config.expected_items).unwrap_or(usize::MAX),
            false_positive_rate: config.false_positive_rate.0,
        };
        let known = Known::new(sizing, config.max_age.0, clock.clone(), on_gone);
        let postgres = match config.postgres() {
            Some((settings, url)) => {
                let source = Postgres::new(options(settings, url), known.clone(), clock.clone());
                Some(Arc::new(
                    source.map_err(|why| format!("guard.sources: postgres: {why}"))?,
                ))
            }
            None => None,
        };
        let lookups = postgres
            .clone()
            .filter(|_| config.lookups_per_second > 0)
            .map(|source| Lookups::new(source, config.lookups_per_second, clock.clone()));
        let peers = redis.map(|redis| {
            let (known, clock) = (known.clone(), clock.clone());
            let has_database = postgres.is_some();
            Peers::new(
                redis,
                known,
                config.expected_items,
                has_database,
                clock,
                metrics.clone(),
            )
        });
        let peers = peers.transpose()?;
        let limits = Limits {
            unknown_per_minute: config.unknown_per_minute,
            not_found: config.not_found.ttl.0,
        };
        // A source that tells everything needs the answers as well: what was created a moment ago is in them first.
        let learns = postgres.is_some()
            || config
                .sources
                .iter()
                .any(|source| matches!(source, SourceConfig::Learned(_)));
        let shared = Shared::new(
            config.mode,
            known,
            lookups,
            limits,
            learns,
            clock.clone(),
            metrics,
        );
        let layer = match peers.clone() {
            Some(peers) => {
                let told = peers.clone();
                Self::over(shared.telling(Box::new(move |kind, id| told.tell(kind, id)))).with(peers)
            }
            None => Self::over(shared),
        };
        Ok((layer, Background { postgres, peers }))
    }
}

pub(super) fn options(settings: &PostgresConfig, url: &str) -> PostgresOptions {
    let url = match &settings.ca {
        None => url.to_owned(),
        Some(path) => {
            let sign = if url.contains('?') { '&' } else { '?' };
            format!("{url}{sign}sslrootcert={}", path.display())
        }
    };
    PostgresOptions {
        url,
        refresh: settings.refresh.0,
        rebuild: settings.rebuild.0,
        connections: settings.connections,
        pool_share: settings.pool_share.0,
        timeout: TIMEOUT,
        ..PostgresOptions::default()
    }
}

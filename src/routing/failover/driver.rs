//! Runs failover for one upstream: beats, follows, decides when it holds the lease, and tells the pool how it stands.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::instance::Instance;
use super::metrics::{Shown, UpstreamFailoverMetrics};
use super::record::{Cause, Mode, Proposal, Record};
use super::redis::Redis;
use super::registry::{Alone, DEADLINE, Registry, wall_ms};
use super::watch::{Settings, Sight};
use crate::routing::link::Link;
use crate::routing::owners::Owners;
use crate::routing::pool::Pool;
use crate::types::cluster::{Cluster, Epoch};
use crate::types::time::Clock;

/// From one beat to the next: all follow within this and the time of one answer.
const BEAT: Duration = Duration::from_millis(250);
/// When others see less health, this instance probes at once: so many beats in a row, then it believes itself.
const DOUBTS: u32 = 12;

/// See the module.
pub(in crate::routing) struct Failover {
    pool: Arc<Pool>,
    owners: Arc<Owners>,
    /// The share of a cluster that is enough, of one.
    enough: f64,
    registry: Box<dyn Registry>,
    instance: Mutex<Instance>,
    doubts: Mutex<u32>,
    trouble: Mutex<Trouble>,
    /// Has a permit once the registry has answered.
    heard: Semaphore,
    clock: Clock,
    metrics: UpstreamFailoverMetrics,
}

/// What keeps the epoch from being confirmed.
#[derive(Debug, Default)]
struct Trouble {
    /// Why the registry gave no answer the last time.
    why: Option<String>,
    /// Whether that was said.
    said: bool,
}

/// How failover of an upstream stands, as one instance sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailoverStatus {
    /// The epoch; nothing before it was first heard.
    pub epoch: Option<Epoch>,
    /// The cluster that has the writes.
    pub active: Cluster,
    /// Who says so.
    pub mode: Mode,
    /// Whether writes are served: not while it cannot be known where they belong.
    pub writes: bool,
    /// This instance.
    pub instance: String,
    /// The instance that decides.
    pub holder: Option<String>,
    /// Whether that is this one.
    pub holds_lease: bool,
    /// Milliseconds since the epoch was last confirmed.
    pub confirmed_ms_ago: Option<u64>,
    /// Why it could not be confirmed the last time.
    pub trouble: Option<String>,
    /// What all instances see together.
    pub healthy: Option<Sight>,
    /// What this one sees.
    pub healthy_here: Option<Sight>,
    /// Pieces of work whose cluster is remembered here.
    pub owners: u64,
    /// How the epoch began.
    pub last_shift: Option<LastShift>,
}

/// How an epoch began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastShift {
    /// Why.
    pub cause: Cause,
    /// The instance that began it.
    pub by: String,
    /// When, in milliseconds of Unix time, by that instance's clock.
    pub at_ms: u64,
    /// How long ago that is by the clock of this one.
    pub seconds_ago: u64,
}

/// What an operator's wish has begun.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Steered {
    /// The upstream, by its name in the configuration.
    pub upstream: String,
    /// The epoch that has begun.
    pub epoch: Epoch,
    /// The cluster that had the writes before.
    pub before: Cluster,
    /// The one that has them now.
    pub active: Cluster,
    /// Who says so from now on.
    pub mode: Mode,
    /// The share of that cluster's capacity that is healthy, if that is known.
    pub healthy: Option<f64>,
}

/// Why an operator's wish was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SteerError {
    /// Nobody knows what the others do.
    #[error("it cannot be confirmed, so nothing has changed as far as is known: {0}")]
    Unconfirmed(String),
    /// Another epoch began at the same moment.
    #[error("another epoch has begun meanwhile; look at the upstreams and try again")]
    Overtaken,
}

impl Failover {
    /// Nothing runs yet. `shared`: the connection to Redis and the prefix of keys there; without it the instance is alone.
    pub(in crate::routing) fn new(
        (pool, owners): (Arc<Pool>, Arc<Owners>),
        settings: Settings,
        name: &str,
        shared: Option<(Arc<Link>, &str)>,
        clock: Clock,
        metrics: UpstreamFailoverMetrics,
    ) -> Arc<Self> {
        let alone = shared.is_none();
        let lease_ms = settings.lease_ttl.as_millis() as u64;
        let registry: Box<dyn Registry> = match shared {
            Some((link, prefix)) => Box::new(Redis::new(link, prefix, &pool.name, lease_ms)),
            None => Box::new(Alone::new(clock.clone())),
        };
        let instance = Instance::new(name.to_owned(), settings, alone, wall_ms(&clock));
        let failover = Arc::new(Self {
            pool,
            owners,
            enough: settings.min_healthy,
            registry,
            instance: Mutex::new(instance),
            doubts: Mutex::default(),
            trouble: Mutex::default(),
            heard: Semaphore::new(0),
            clock,
            metrics,
        });
        failover.stand();
        failover
    }

    /// Beats for ever.
    pub(in crate::routing) async fn keep(self: Arc<Self>) {
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = self.beat().await;
            if outcome.is_ok() && self.heard.available_permits() == 0 {
                self.heard.add_permits(1);
            }
            self.note(outcome);
            self.stand();
        }
    }

    /// Who has work that outlives requests.
    pub(in crate::routing) fn owners(&self) -> Arc<Owners> {
        self.owners.clone()
    }

    /// Returns once the registry has answered.
    pub(in crate::routing) async fn is_heard(&self) {
        let _ = self.heard.acquire().await;
    }

    /// Carries out what an operator wants.
    ///
    /// # Errors
    /// When the registry does not confirm it: then nothing has changed, as far as is known.
    pub(in crate::routing) async fn steer(&self, mode: Mode) -> Result<Steered, SteerError> {
        // So that what is proposed follows what all know now.
        self.beat().await.map_err(SteerError::Unconfirmed)?;
        let wanted = self.instance.lock().steer(mode, self.now(), wall_ms(&self.clock));
        let proposal = wanted.ok_or(SteerError::Overtaken)?;
        let before = proposal.from.cluster();
        let begun = self.propose(proposal).await.map_err(SteerError::Unconfirmed)?;
        self.stand();
        let epoch = begun.ok_or(SteerError::Overtaken)?;
        let active = epoch.cluster();
        let [agreed, own] = self.instance.lock().sights(self.now());
        Ok(Steered {
            upstream: self.pool.name.clone(),
            epoch,
            before,
            active,
            mode,
            healthy: agreed.or(own).map(|sight| sight.of(active)),
        })
    }

    async fn beat(&self) -> Result<(), String> {
        let (sight, low) = self.pool.sight(self.enough);
        let sent = self.now();
        let beat = self
            .instance
            .lock()
            .beat((sight, low), sent, wall_ms(&self.clock));
        let heard = in_time(self.registry.beat(&beat)).await?;
        let (before, wanted, record) = {
            let mut instance = self.instance.lock();
            let now = self.now();
            let before = instance.hear(heard, sent, now);
            (
                before,
                instance.wants(now, wall_ms(&self.clock)),
                instance.record().cloned(),
            )
        };
        if let (Some(before), Some(record)) = (before, record) {
            self.say(before, &record);
        }
        self.doubt(sight);
        if let Some(proposal) = wanted {
            self.propose(proposal).await?;
        }
        Ok(())
    }

    /// Begins an epoch; `None` if another has begun meanwhile.
    async fn propose(&self, proposal: Proposal) -> Result<Option<Epoch>, String> {
        let sent = self.now();
        if !in_time(self.registry.propose(&proposal)).await? {
            return Ok(None);
        }
        let record = proposal.record;
        let before = self.instance.lock().adopt(record.clone(), sent);
        if let Some(before) = before {
            self.say(before, &record);
        }
        Ok(Some(record.epoch))
    }

    /// Looks again at once where others see less than this instance does.
    fn doubt(&self, own: Sight) {
        let [agreed, _] = self.instance.lock().sights(self.now());
        let mut doubts = self.doubts.lock();
        let is_doubted =
            |cluster: &Cluster| agreed.is_some_and(|agreed| agreed.of(*cluster) + 0.01 < own.of(*cluster));
        let mut doubted = Cluster::ALL.into_iter().filter(is_doubted).peekable();
        if doubted.peek().is_none() {
            *doubts = 0;
        } else if *doubts < DOUBTS {
            *doubts += 1;
            doubted.for_each(|cluster| self.pool.probe_soon(cluster));
        }
    }

    fn say(&self, before: Epoch, record: &Record) {
        let (upstream, epoch) = (&*self.pool.name, record.epoch.0);
        let (to, details) = (record.epoch.cluster(), &record.details);
        let (cause, by, mode) = (details.cause.as_str(), &*details.by, details.mode.as_str());
        if before.cluster() == to {
            tracing::info!(
                upstream,
                epoch,
                mode,
                cause,
                by,
                "an operator has said who decides where the writes go"
            );
            return;
        }
        self.metrics.shifted(details.cause);
        let [agreed, own] = self.instance.lock().sights(self.now());
        let share = |cluster| agreed.or(own).map(|sight| (100.0 * sight.of(cluster)).round());
        tracing::warn!(
            upstream,
            epoch,
            from = before.cluster().as_str(),
            to = to.as_str(),
            cause,
            by,
            mode,
            primary_healthy_percent = share(Cluster::Primary),
            standby_healthy_percent = share(Cluster::Standby),
            "failover: the writes go to the {} cluster now",
            to.as_str()
        );
    }

    /// Says once what keeps the epoch from being confirmed, and once that it is over. The first beat of all may come
    /// before there is a connection, of which nothing is said.
    fn note(&self, outcome: Result<(), String>) {
        let mut trouble = self.trouble.lock();
        let upstream = &*self.pool.name;
        let is_first = trouble.why.is_none() && self.heard.available_permits() == 0;
        match &outcome {
            Err(why) if !trouble.said && !is_first => {
                trouble.said = true;
                tracing::warn!(upstream, "failover: the epoch cannot be confirmed: {why}");
            }
            Ok(()) if std::mem::take(&mut trouble.said) => {
                tracing::info!(upstream, "failover: the epoch is confirmed again");
            }
            _ => {}
        }
        trouble.why = outcome.err();
    }

    /// Has the pool go by how things stand now.
    fn stand(&self) {
        // Held until the pool knows, so that of two callers the later one has the last word.
        let instance = self.instance.lock();
        self.pool.stand(instance.standing(self.now()));
    }

    /// Brings the gauges up to date.
    pub(in crate::routing) fn refresh_gauges(&self) {
        let now = self.now();
        let instance = self.instance.lock();
        let standing = instance.standing(now);
        self.metrics.show(&Shown {
            epoch: instance.record().map_or(0, |record| record.epoch.0),
            active: standing.active(),
            mode: instance.mode(),
            writes: standing.has_writes(),
            lease: instance.holds_lease(),
            confirmed: instance.confirmed().map(|at| now.saturating_duration_since(at)),
            owners: self.owners.count(),
        });
        let [agreed, own] = instance.sights(now);
        if let Some(sight) = agreed.or(own) {
            for cluster in Cluster::ALL {
                self.metrics.healthy(cluster, sight.of(cluster));
            }
        }
    }

    /// How it stands.
    pub(in crate::routing) fn status(&self) -> FailoverStatus {
        let now = self.now();
        let instance = self.instance.lock();
        let standing = instance.standing(now);
        let record = instance.record();
        let [healthy, healthy_here] = instance.sights(now);
        let wall_ms = wall_ms(&self.clock);
        FailoverStatus {
            epoch: record.map(|record| record.epoch),
            active: standing.active(),
            mode: instance.mode(),
            writes: standing.has_writes(),
            instance: instance.name().to_owned(),
            holder: instance.holder().map(str::to_owned),
            holds_lease: instance.holds_lease(),
            confirmed_ms_ago: instance
                .confirmed()
                .map(|at| now.saturating_duration_since(at).as_millis() as u64),
            trouble: self.trouble.lock().why.clone(),
            healthy,
            healthy_here,
            owners: self.owners.count(),
            last_shift: record.map(|record| LastShift {
                cause: record.details.cause,
                by: record.details.by.clone(),
                at_ms: record.details.at_ms,
                seconds_ago: wall_ms.saturating_sub(record.details.at_ms) / 1_000,
            }),
        }
    }

    fn now(&self) -> Instant {
        self.clock.now().monotonic
    }
}

async fn in_time<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match timeout(DEADLINE, question).await {
        Ok(answer) => answer,
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// A name that tells this process from all others: host, process, and a few digits by chance.
pub(in crate::routing) fn instance_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    let host = host.as_deref().map_or("edge", str::trim);
    let chance = ahash::RandomState::new().hash_one(0) as u16;
    format!("{host}:{}:{chance:04x}", std::process::id())
}

//! What goes wrong in each scenario, and when.

use std::time::Duration;

use tokio::time::sleep;

use crate::child::micros;
use crate::instance::Standing;
use crate::load::Load;
use crate::network::{INSTANCES, Link, REPLICAS};
use crate::world::World;

/// Load before anything happens, and after all has happened.
const CALM: Duration = Duration::from_secs(2);
/// How long nothing may shift where nothing has to: twice what a shift may take.
const STAY: Duration = Duration::from_secs(12);
/// How long a shift may take before the drill gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Killed,
    Stopped,
    Half,
    Partition,
    CutOffAndKilled,
    CutOff,
    RedisLost,
    Relapse,
    HolderKilled,
    Steered,
}

impl Fault {
    pub(crate) const ALL: [Self; 10] = [
        Self::Killed,
        Self::Stopped,
        Self::Half,
        Self::Partition,
        Self::CutOffAndKilled,
        Self::CutOff,
        Self::RedisLost,
        Self::Relapse,
        Self::HolderKilled,
        Self::Steered,
    ];

    /// Its name for `--only` and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::Half => "half",
            Self::Partition => "partition",
            Self::CutOffAndKilled => "cut-off-and-killed",
            Self::CutOff => "cut-off",
            Self::RedisLost => "redis-lost",
            Self::Relapse => "relapse",
            Self::HolderKilled => "holder-killed",
            Self::Steered => "steered",
        }
    }

    /// In the table.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Killed => "`kill -9` of the primary",
            Self::Stopped => "SIGSTOP of the primary",
            Self::Half => "`kill -9` of half of it",
            Self::Partition => "partition before the primary",
            Self::CutOffAndKilled => "`kill -9`, one instance without Redis",
            Self::CutOff => "one instance without Redis",
            Self::RedisLost => "Redis killed, back empty; then `kill -9` of the primary",
            Self::Relapse => "`kill -9`; back, and dead again before its time",
            Self::HolderKilled => "`kill -9` of the primary and of the instance that decides",
            Self::Steered => "an operator: to the standby, and back",
        }
    }

    /// Whether the writes have to go to the standby.
    pub(crate) fn shifts(self) -> bool {
        !matches!(self, Self::Half | Self::CutOff)
    }

    /// Whether the writes come back by themselves.
    pub(crate) fn returns(self) -> bool {
        self.shifts() && self != Self::Steered
    }

    /// Instances that cannot follow while the fault lasts.
    pub(crate) fn except(self) -> &'static [usize] {
        match self {
            Self::CutOffAndKilled => &[CUT_OFF],
            _ => &[],
        }
    }
}

/// The instance that is cut off from Redis.
const CUT_OFF: usize = 0;

/// When what happened, in microseconds of Unix time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moments {
    pub(crate) fault: u64,
    /// When it was over for good.
    pub(crate) healed: u64,
    /// Instances that were killed.
    pub(crate) killed: Option<usize>,
}

/// Lets it happen under `load`, and all be well again.
///
/// # Errors
/// What could not be done, or did not happen.
pub(crate) async fn play(world: &mut World, load: &Load, fault: Fault) -> Result<Moments, String> {
    let mut moments = Moments::default();
    sleep(CALM).await;
    if fault == Fault::RedisLost {
        world.kill_redis();
        sleep(Duration::from_millis(500)).await;
        world.start_redis()?;
        sleep(Duration::from_secs(3)).await;
    }
    moments.fault = micros();
    match fault {
        Fault::Killed | Fault::Relapse | Fault::RedisLost => world.kill_primary(REPLICAS),
        Fault::Stopped => world.signal_primary("STOP")?,
        Fault::Half => world.kill_primary(REPLICAS / 2),
        Fault::Partition => world.cut(Link::Primary, true)?,
        Fault::CutOff => world.cut(Link::Redis(CUT_OFF), true)?,
        Fault::CutOffAndKilled => {
            world.cut(Link::Redis(CUT_OFF), true)?;
            world.kill_primary(REPLICAS);
        }
        Fault::Steered => world.steer("standby").await?,
        Fault::HolderKilled => {
            let holder = world.holder().await?;
            moments.killed = Some(holder);
            load.will_be_killed(holder);
            moments.fault = micros();
            world.kill_instance(holder);
            world.kill_primary(REPLICAS);
        }
    }
    match fault.shifts() {
        true => follow(world, "standby", fault.except()).await?,
        false => sleep(STAY).await,
    }
    sleep(CALM).await;
    if fault == Fault::Relapse {
        world.start_primary(REPLICAS)?;
        sleep(Duration::from_secs(3)).await;
        world.kill_primary(REPLICAS);
        // Nobody has a reason to ask it: only a probe can tell.
        sleep(Duration::from_secs(6)).await;
    }
    if fault == Fault::CutOffAndKilled {
        world.cut(Link::Redis(CUT_OFF), false)?;
        follow(world, "standby", &[]).await?;
    }
    moments.healed = micros();
    match fault {
        Fault::Stopped => world.signal_primary("CONT")?,
        Fault::Half => world.start_primary(REPLICAS / 2)?,
        Fault::Partition => world.cut(Link::Primary, false)?,
        Fault::CutOff => world.cut(Link::Redis(CUT_OFF), false)?,
        Fault::Steered => world.steer("primary").await?,
        _ => world.start_primary(REPLICAS)?,
    }
    follow(world, "primary", &[]).await?;
    if fault == Fault::Steered {
        world.steer("auto").await?;
    }
    sleep(CALM).await;
    Ok(moments)
}

async fn follow(world: &mut World, cluster: &str, except: &[usize]) -> Result<(), String> {
    let is_so = |standing: &Standing| standing.active == cluster && standing.is_confirmed;
    match world.until(PATIENCE, except, is_so).await? {
        true => Ok(()),
        false => {
            let standings = world.standings().await;
            Err(format!(
                "the {INSTANCES} instances do not follow to the {cluster} cluster: {standings:?}"
            ))
        }
    }
}

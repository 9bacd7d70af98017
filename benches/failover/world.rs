//! What a scenario plays in: two clusters of replicas, a Redis, and instances of dify-edge before them, all processes of
//! their own, all gone when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::child::{Child, Scratch, logged};
use crate::instance::{Instance, Standing};
use crate::network::{INSTANCES, Link, Network, REPLICAS};
use crate::replica::{Entry, Replica};

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);
/// From one look at the instances to the next.
const LOOK: Duration = Duration::from_millis(25);

/// What all worlds have in common.
pub(crate) struct Ground {
    /// dify-edge.
    pub(crate) edge: PathBuf,
    /// `health_check.interval`.
    pub(crate) interval: String,
    pub(crate) is_relayed: bool,
    pub(crate) keeps_logs: bool,
}

/// See the module. Fields are dropped in this order.
pub(crate) struct World {
    /// Those that were killed are none.
    pub(crate) instances: Vec<Option<Instance>>,
    pub(crate) primary: Vec<Replica>,
    pub(crate) standby: Vec<Replica>,
    redis: Child,
    network: Network,
    program: PathBuf,
    pub(crate) directory: Scratch,
}

impl World {
    /// Returns when all is well.
    pub(crate) async fn start(ground: &Ground, name: &str) -> Result<Self, String> {
        let network = Network::new(ground.is_relayed)?;
        let directory = Scratch::new(name, ground.keeps_logs)?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let redis = redis(&network, &directory.path)?;
        let mut primary = Vec::new();
        for number in 0..REPLICAS {
            primary.push(primary_replica(&network, &program, &directory.path, number)?);
        }
        let mut standby = Vec::new();
        for number in 0..REPLICAS {
            let journal = directory.path.join(format!("standby-{number}.journal"));
            let address = ([127, 0, 0, 1], 0).into();
            standby.push(Replica::start(Command::new(&program), address, journal)?);
        }
        let mut instances = Vec::new();
        for number in 0..INSTANCES {
            let mut values = vec![
                ("@INTERVAL@".to_owned(), ground.interval.clone()),
                ("@REDIS@".to_owned(), network.redis_seen(number).to_string()),
            ];
            for (place, replica) in standby.iter().enumerate() {
                let primary = network.primary_seen(place).to_string();
                values.push((format!("@PRIMARY_{place}@"), primary));
                values.push((format!("@STANDBY_{place}@"), replica.address.to_string()));
            }
            instances.push(Some(Instance::start(
                &ground.edge,
                &directory.path,
                number,
                &values,
            )?));
        }
        let mut world = Self {
            instances,
            primary,
            standby,
            redis,
            network,
            program,
            directory,
        };
        let is_well = |standing: &Standing| {
            standing.is_confirmed && standing.active == "primary" && standing.healthy == [1.0, 1.0]
        };
        if !world.until(PATIENCE, &[], is_well).await? {
            return Err(format!(
                "the instances do not get ready: {:?}",
                world.standings().await
            ));
        }
        Ok(world)
    }

    /// Looks again and again until all instances but `except` stand so; false if they never did.
    pub(crate) async fn until(
        &mut self,
        limit: Duration,
        except: &[usize],
        is_so: impl Fn(&Standing) -> bool,
    ) -> Result<bool, String> {
        let began = Instant::now();
        while began.elapsed() < limit {
            self.check()?;
            let mut all = true;
            for (number, instance) in self.instances.iter().enumerate() {
                let Some(instance) = instance.as_ref().filter(|_| !except.contains(&number)) else {
                    continue;
                };
                all &= instance.standing().await.is_ok_and(|standing| is_so(&standing));
            }
            if all {
                return Ok(true);
            }
            sleep(LOOK).await;
        }
        Ok(false)
    }

    /// How each instance stands.
    pub(crate) async fn standings(&self) -> Vec<Result<Standing, String>> {
        let mut all = Vec::new();
        for instance in self.instances.iter().flatten() {
            all.push(instance.standing().await);
        }
        all
    }

    /// Says to the last instance where the writes are to go.
    pub(crate) async fn steer(&self, to: &str) -> Result<(), String> {
        let instance = self.instances.iter().flatten().last().ok_or("no instance runs")?;
        instance.steer(to).await
    }

    /// The instance that decides.
    pub(crate) async fn holder(&self) -> Result<usize, String> {
        let standings = self.standings().await;
        let name = standings
            .into_iter()
            .flatten()
            .next()
            .map(|standing| standing.holder)
            .unwrap_or_default();
        let is_it =
            |instance: &Option<Instance>| instance.as_ref().is_some_and(|instance| instance.is(&name));
        self.instances
            .iter()
            .position(is_it)
            .ok_or_else(|| format!("nobody is {name}"))
    }

    /// `kill -9` for the first so many replicas of the primary cluster.
    pub(crate) fn kill_primary(&mut self, count: usize) {
        self.primary
            .iter_mut()
            .take(count)
            .for_each(|replica| replica.child.kill());
    }

    /// Starts those again.
    pub(crate) fn start_primary(&mut self, count: usize) -> Result<(), String> {
        for number in 0..count {
            self.primary[number] =
                primary_replica(&self.network, &self.program, &self.directory.path, number)?;
        }
        Ok(())
    }

    /// SIGSTOP or SIGCONT for all replicas of the primary cluster.
    pub(crate) fn signal_primary(&self, name: &str) -> Result<(), String> {
        self.primary
            .iter()
            .try_for_each(|replica| replica.child.signal(name))
    }

    pub(crate) fn cut(&self, link: Link, is_cut: bool) -> Result<(), String> {
        self.network.cut(link, is_cut)
    }

    pub(crate) fn kill_redis(&mut self) {
        self.redis.kill();
    }

    /// Starts it at its address, empty.
    pub(crate) fn start_redis(&mut self) -> Result<(), String> {
        self.redis = redis(&self.network, &self.directory.path)?;
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill_instance(&mut self, number: usize) {
        self.instances[number] = None;
    }

    /// What each replica has carried out: of the primary cluster, and of the standby.
    pub(crate) fn journals(&self) -> Result<[Vec<Vec<Entry>>; 2], String> {
        let of = |replicas: &[Replica]| replicas.iter().map(Replica::entries).collect();
        let (primary, standby): (Result<_, String>, Result<_, String>) =
            (of(&self.primary), of(&self.standby));
        Ok([primary?, standby?])
    }

    /// # Errors
    /// When something has ended that nobody has killed.
    fn check(&mut self) -> Result<(), String> {
        for (number, instance) in self.instances.iter_mut().enumerate() {
            if let Some(how) = instance.as_mut().and_then(|instance| instance.child.ended()) {
                let log = self.directory.path.join(format!("instance-{number}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("instance {number} has ended ({how}): {log}"));
            }
        }
        Ok(())
    }
}

fn primary_replica(
    network: &Network,
    program: &Path,
    directory: &Path,
    number: usize,
) -> Result<Replica, String> {
    let journal = directory.join(format!("primary-{number}.journal"));
    let command = network.command(Link::Primary, program);
    Replica::start(command, network.primary(number), journal)
}

fn redis(network: &Network, directory: &Path) -> Result<Child, String> {
    let (bind, port) = network.redis();
    let mut command = network.command(Link::Redis(0), Path::new("redis-server"));
    command.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
        "--daemonize",
        "no",
    ]);
    command.args(["--bind", bind, "--port", &port.to_string()]);
    command.arg("--dir").arg(directory);
    logged(&mut command, &directory.join("redis.log"))?;
    Child::start(&mut command)
}

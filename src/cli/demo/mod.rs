//! `dify-edge demo`: the main job shown without a Dify at hand.
//!
//! Three upstreams replay captured exchanges with their timing and the limits of a stock dify-api. The same load runs
//! once straight against them and once through the proxy, a table compares the two, and then both go on running.
//! `instances` is another show: how several proxies share a Redis; and so is `trial`: replicas to be killed by hand.

mod exchanges;
mod hints;
mod instances;
pub mod load;
pub mod replay;
mod report;
mod trial;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{FAILED, OK, fail, print};
use crate::app::Edge;
use crate::config::upstreams::{BalancePolicy, Capacity, ConnectionsConfig, ReplicaConfig, UpstreamConfig};
use crate::config::{AdminConfig, Config, ListenConfig};
use crate::types::time::Clock;
use crate::types::units::Ratio;
use exchanges::exchanges;
use load::{Client, Live, Mix, Plan, Question};
use replay::{Record, Replay, ReplayOptions};
use report::{Run, Setting};

/// Servers behind the proxy.
const REPLICAS: u16 = 3;
/// Requests that a stock dify-api container serves at once.
const SLOTS: usize = 10;
/// Share of the slots that the proxy uses: one of ten is left to health probes.
const POOL_SHARE: f64 = 0.9;
/// People whose lists are read and written.
const USERS: u16 = 20;
/// Clients that read, unless it is said.
const READERS: u16 = 180;
/// Clients that stream.
const CHATTERS: usize = 8;
/// Clients that wait for whole answers.
const ASKERS: usize = 4;
/// Clients that rate and rename.
const WRITERS: usize = 4;
/// Both runs draw from it.
const SEED: u64 = 20_260_101;
/// How often it is looked at what waits.
const LOOK: Duration = Duration::from_millis(20);
/// The progress line is drawn at every so many looks.
const LOOKS_PER_LINE: u32 = 10;
/// How long requests that are left may take at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How long each of the two runs takes.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// End after the table instead of going on until Ctrl-C.
    #[arg(long)]
    exit: bool,
    /// Clients that read, by default 180 back to back, or 24 with pauses for --load; some more stream or write.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    clients: Option<u16>,
    /// Show in place of that four replicas, each a process to kill, stop or slow, under a steady load until Ctrl-C.
    #[arg(long, conflicts_with_all = ["instances", "redis"])]
    load: bool,
    /// How a replica is chosen under --load: round_robin, least_loaded or weighted_health.
    #[arg(long, value_name = "POLICY", requires = "load", value_parser = policy)]
    policy: Option<BalancePolicy>,
    /// Be one of these replicas.
    #[arg(long, hide = true, value_name = "ADDRESS")]
    replica: Option<SocketAddr>,
    /// Use ports P to P+2 (with --load P+3) for the upstream, the next for the proxy and the next for its
    /// administration. Default: free ones.
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=65_530))]
    base_port: Option<u16>,
    /// Show in place of that how so many instances share a Redis.
    #[arg(long, value_name = "N", requires = "redis", value_parser = clap::value_parser!(u16).range(2..=16))]
    instances: Option<u16>,
    /// The Redis that they share; without a URL a redis-server is started for the time of the show.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", requires = "instances")]
    redis: Option<String>,
}

/// Runs the demo.
pub async fn run(args: DemoArgs) -> ExitCode {
    let shown = match (args.instances, &args.redis) {
        _ if args.replica.is_some() => trial::replica(args.replica.unwrap_or(loopback(&args, 0))).await,
        _ if args.load => Box::pin(trial::show(&args)).await,
        (Some(instances), Some(redis)) => Box::pin(instances::show(instances, redis)).await,
        _ => Box::pin(demonstrate(&args)).await,
    };
    match shown {
        Ok(()) => ExitCode::from(OK),
        Err(why) => fail(FAILED, &why),
    }
}

async fn demonstrate(args: &DemoArgs) -> Result<(), String> {
    let captured = exchanges(USERS);
    let replays = start_replays(&captured, args).await?;
    let upstream: Vec<_> = replays.iter().map(Replay::address).collect();
    let stage = Stage {
        replays,
        mix: Arc::new(Mix::new(&captured, SEED)),
        plan: Plan {
            readers: args.clients.unwrap_or(READERS).into(),
            chatters: CHATTERS,
            askers: ASKERS,
            writers: WRITERS,
            pause: Duration::ZERO,
            duration: Duration::from_secs(args.seconds),
            seed: SEED,
        },
    };
    let straight = stage.play("straight to the upstream", &upstream, None).await;

    let config = proxy_config(args, &upstream);
    let connections = config
        .upstreams
        .values()
        .map(|api| api.connections.usable_of(SLOTS))
        .sum();
    let edge = Edge::start(config, Clock::System)
        .await
        .map_err(|error| error.to_string())?;
    let proxied = stage
        .play("through dify-edge", &edge.addresses, Some(edge.admin))
        .await;

    let setting = Setting {
        replicas: upstream.len(),
        slots: SLOTS,
        connections,
        users: USERS,
        clients: [stage.plan.readers, CHATTERS, ASKERS, WRITERS],
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    print(&format!("\n{}", report::render(&straight, &proxied, &setting)));
    if !args.exit {
        if let Some(proxy) = edge.addresses.first() {
            print(&format!("\n{}", hints::render(&captured, *proxy, edge.admin)));
        }
        tokio::signal::ctrl_c()
            .await
            .map_err(|error| format!("cannot wait for Ctrl-C: {error}"))?;
    }
    edge.drain(DRAIN).await;
    Ok(())
}

/// A policy by its name in the configuration.
fn policy(name: &str) -> Result<BalancePolicy, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// The loopback address with the port that is `offset` above the base; a free port without a base.
fn loopback(args: &DemoArgs, offset: u16) -> SocketAddr {
    let port = args.base_port.map_or(0, |base| base.saturating_add(offset));
    ([127, 0, 0, 1], port).into()
}

async fn start_replays(exchanges: &[Record], args: &DemoArgs) -> Result<Vec<Replay>, String> {
    let mut replays = Vec::new();
    for number in 0..REPLICAS {
        let address = loopback(args, number);
        let options = ReplayOptions {
            slots: SLOTS,
            address: Some(address),
            fresh_date: true,
            ..ReplayOptions::default()
        };
        let replay = Replay::start(exchanges.to_vec(), options).await;
        replays.push(replay.map_err(|error| format!("cannot listen on {address}: {error}"))?);
    }
    Ok(replays)
}

/// The proxy as it is by default, before these replicas and with as many connections as they have slots.
fn proxy_config(args: &DemoArgs, upstream: &[SocketAddr]) -> Config {
    let replicas = upstream.iter().map(|address| ReplicaConfig {
        url: format!("http://{address}"),
        ..ReplicaConfig::default()
    });
    let api = UpstreamConfig {
        replicas: replicas.collect(),
        capacity: Some(Capacity::Fixed(SLOTS)),
        connections: ConnectionsConfig {
            pool_share: Ratio(POOL_SHARE),
            ..ConnectionsConfig::default()
        },
        ..UpstreamConfig::default()
    };
    Config {
        listen: vec![ListenConfig {
            address: loopback(args, upstream.len() as u16),
            ..ListenConfig::default()
        }],
        admin: AdminConfig {
            address: loopback(args, upstream.len() as u16 + 1),
            ..AdminConfig::default()
        },
        upstreams: [("api".to_owned(), api)].into(),
        ..Config::default()
    }
}

/// What both runs share.
struct Stage {
    replays: Vec<Replay>,
    mix: Arc<Mix>,
    plan: Plan,
}

impl Stage {
    /// One run, watched: against `targets`, with the administrative listener of the proxy if there is one.
    async fn play(&self, name: &str, targets: &[SocketAddr], admin: Option<SocketAddr>) -> Run {
        for replay in &self.replays {
            replay.reset();
        }
        let live = Arc::new(Live::default());
        let mut load = pin!(load::run(targets, &self.mix, &self.plan, &live));
        let mut admin = admin.map(Client::new);
        let metrics = Question::get("/metrics");
        let (mut waiting, mut queue) = (0, 0);
        let mut progress = Progress::new(name, self.plan.duration);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let outcome = loop {
            tokio::select! {
                outcome = &mut load => break outcome,
                _ = looks.tick() => {
                    let now = self.replays.iter().map(|replay| replay.counters().backlog).sum();
                    waiting = waiting.max(now);
                    if let Some(admin) = &mut admin
                        && let Ok(answer) = admin.ask(&metrics).await
                    {
                        queue = queue.max(queue_length(&String::from_utf8_lossy(&answer.body)));
                    }
                    progress.look(live.answers(), now);
                }
            }
        };
        progress.end(live.answers());
        let counters: Vec<_> = self.replays.iter().map(Replay::counters).collect();
        let upstream_requests = counters
            .iter()
            .flat_map(|counters| &counters.by_target)
            .filter(|((_, target), _)| target != "/health")
            .map(|(_, count)| count)
            .sum();
        let worst: u64 = counters.iter().map(|counters| counters.longest_backlog).sum();
        Run {
            outcome,
            upstream_requests,
            // In doubt against the proxy: its replicas' worst moments are added as if they had been one.
            waiting: if admin.is_some() { worst } else { waiting },
            queue: admin.is_some().then_some(queue),
        }
    }
}

/// What waits inside the proxy, over all upstreams, from its metrics.
fn queue_length(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("dify_edge_upstream_queue_length"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

/// A line that tells how far a run is: drawn again and again on a terminal, once elsewhere.
struct Progress<'a> {
    name: &'a str,
    duration: Duration,
    start: tokio::time::Instant,
    terminal: bool,
    looks: u32,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, duration: Duration) -> Self {
        Self {
            name,
            duration,
            start: Clock::System.now().monotonic,
            terminal: std::io::stdout().is_terminal(),
            looks: 0,
        }
    }

    fn look(&mut self, answers: u64, waiting: u64) {
        self.looks += 1;
        if self.terminal && self.looks.is_multiple_of(LOOKS_PER_LINE) {
            let (name, seconds) = (self.name, self.duration.as_secs());
            let elapsed = self
                .start
                .elapsed()
                .as_secs_f64()
                .min(self.duration.as_secs_f64());
            print(&format!(
                "\r{name}: {elapsed:.1} of {seconds} s, {answers} answers, {waiting} waiting at the upstream\x1b[K"
            ));
        }
    }

    fn end(&self, answers: u64) {
        let (name, seconds) = (self.name, self.duration.as_secs());
        let (redraw, clear) = if self.terminal { ("\r", "\x1b[K") } else { ("", "") };
        print(&format!(
            "{redraw}{name}: {seconds} s, {answers} answers{clear}\n"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_all_upstreams_are_added() {
        let metrics = "# HELP dify_edge_upstream_queue_length x\n\
            dify_edge_upstream_queue_length{upstream=\"api\"} 3\n\
            dify_edge_upstream_queue_length{upstream=\"web\"} 2\n\
            dify_edge_upstream_in_flight 9\n";
        assert_eq!(queue_length(metrics), 5);
        assert_eq!(queue_length("nonsense"), 0);
    }

    #[test]
    fn the_proxy_of_the_demo_has_a_valid_configuration() {
        let args = DemoArgs {
            seconds: 1,
            exit: true,
            clients: Some(1),
            load: false,
            policy: None,
            replica: None,
            base_port: Some(4000),
            instances: None,
            redis: None,
        };
        let upstream: Vec<_> = (0..REPLICAS).map(|number| loopback(&args, number)).collect();
        let config = proxy_config(&args, &upstream);
        assert!(config.check().is_empty(), "{:?}", config.check());
        let addresses = [config.listen[0].address.port(), config.admin.address.port()];
        assert_eq!(addresses, [4003, 4004]);
        assert_eq!(config.upstreams["api"].connections.usable_of(SLOTS), SLOTS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_straight_against_the_replays_is_measured() {
        let args = DemoArgs {
            seconds: 3,
            exit: true,
            clients: Some(60),
            load: false,
            policy: None,
            replica: None,
            base_port: None,
            instances: None,
            redis: None,
        };
        let captured = exchanges(USERS);
        let replays = start_replays(&captured, &args).await.unwrap();
        let targets: Vec<_> = replays.iter().map(Replay::address).collect();
        let stage = Stage {
            replays,
            mix: Arc::new(Mix::new(&captured, SEED)),
            plan: Plan {
                readers: 60,
                chatters: 2,
                askers: 1,
                writers: 1,
                pause: Duration::ZERO,
                duration: Duration::from_secs(3),
                seed: SEED,
            },
        };
        let run = stage.play("straight", &targets, None).await;
        assert_eq!(run.outcome.errors(), 0, "{:?}", run.outcome.reads.first_error);
        assert_eq!(run.upstream_requests, run.outcome.answers());
        assert!(run.waiting > 0, "60 readers and 30 slots");
        assert_eq!(run.queue, None);
    }
}

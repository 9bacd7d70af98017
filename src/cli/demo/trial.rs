//! `demo --load`: replicas that are processes of their own, under a steady load, to be killed, stopped and slowed by
//! hand while one line a second tells what clients and the balancing notice.
//!
//! Each replica replays as in the other shows. One that was killed is started again after a moment, as a container is.
//! Nothing is cached, so that every request meets a replica.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::exchanges::exchanges;
use super::load::{self, Client, Live, Mix, Moment, Plan, Question};
use super::replay::{Replay, ReplayOptions};
use super::{CHATTERS, DRAIN, DemoArgs, SEED, SLOTS, USERS, WRITERS, proxy_config};
use crate::app::Edge;
use crate::cli::print;
use crate::types::time::Clock;

/// Replicas of the trial.
const REPLICAS: usize = 4;
/// Clients that read, unless it is said, and how long each thinks.
const READERS: u16 = 24;
const PAUSE: Duration = Duration::from_millis(20);
/// A replica that is told to be slow takes so many times as long.
const SLOWER: f64 = 5.0;
/// A killed replica is started again after this.
const RESTART: Duration = Duration::from_secs(15);
/// Lines from one heading to the next.
const LINES: u64 = 20;

/// Replays at `address` until the process that started this one is gone: its end of the standard input closes.
/// SIGUSR1 makes the answers slow, and quick again.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) async fn replica(address: SocketAddr) -> Result<(), String> {
    let options = ReplayOptions {
        slots: SLOTS,
        address: Some(address),
        fresh_date: true,
        ..ReplayOptions::default()
    };
    let replay = Replay::start(exchanges(USERS), options).await;
    let replay = replay.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let mut toggle = signal(SignalKind::user_defined1()).map_err(|error| error.to_string())?;
    let (gone, mut is_gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(gone);
    });
    print(&format!("{}\n", replay.address()));
    let mut is_slow = false;
    loop {
        tokio::select! {
            _ = &mut is_gone => return Ok(()),
            _ = toggle.recv() => {
                is_slow = !is_slow;
                replay.set_time_scale(if is_slow { SLOWER } else { 1.0 });
            }
        }
    }
}

/// Shows it until a signal comes, or for the time of `--seconds` when `--exit` is given.
///
/// # Errors
/// What could not be started.
pub(super) async fn show(args: &DemoArgs) -> Result<(), String> {
    let mut replicas = Vec::new();
    for number in 0..REPLICAS as u16 {
        let port = args.base_port.map_or(0, |base| base.saturating_add(number));
        replicas.push(Process::start(([127, 0, 0, 1], port).into())?);
    }
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
    let mut config = proxy_config(args, &addresses);
    config.cache.ttl_seconds = 0;
    let policy = args.policy.unwrap_or_default();
    for upstream in config.upstreams.values_mut() {
        upstream.balance.policy = policy;
    }
    let edge = Edge::start(config, Clock::System)
        .await
        .map_err(|error| error.to_string())?;

    let captured = exchanges(USERS);
    let mix = Arc::new(Mix::new(&captured, SEED));
    let plan = Plan {
        readers: args.clients.unwrap_or(READERS).into(),
        chatters: CHATTERS,
        askers: 0,
        writers: WRITERS,
        pause: PAUSE,
        duration: Duration::from_secs(if args.exit { args.seconds } else { u64::MAX / 4 }),
        seed: SEED,
    };
    print(&heading(&replicas, policy, &edge, plan.readers));

    let live = Arc::new(Live::default());
    let targets = edge.addresses.clone();
    let mut running = pin!(load::run(&targets, &mix, &plan, &live));
    let mut admin = Admin::new(edge.admin);
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut second = 0;
    loop {
        tokio::select! {
            _ = &mut running => break,
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
            _ = ticks.tick() => {
                for (number, replica) in replicas.iter_mut().enumerate() {
                    if let Some(news) = replica.look() {
                        print(&format!("      replica {} {news}\n", number + 1));
                    }
                }
                if second % LINES == 0 {
                    print(&columns());
                }
                second += 1;
                print(&line(second, &live.moment(), &admin.replicas(&addresses).await));
            }
        }
    }
    edge.drain(DRAIN).await;
    Ok(())
}

fn heading(replicas: &[Process], policy: impl std::fmt::Debug, edge: &Edge, readers: usize) -> String {
    let mut text = format!(
        "{REPLICAS} replicas of {SLOTS} slots, policy {policy:?}; {readers} readers, {CHATTERS} streams, {WRITERS} \
         writers; nothing is cached\n\n"
    );
    for (number, replica) in replicas.iter().enumerate() {
        let (pid, address) = (replica.child.id(), replica.address);
        let _ = writeln!(text, "  replica {}  pid {pid}  {address}", number + 1);
    }
    let _ = write!(
        text,
        "\n  kill -9 PID      it dies, and is started again after {} s\n  kill -STOP PID   it hangs; kill -CONT PID ends \
         that\n  kill -USR1 PID   it is {SLOWER} times slower, or as before\n  dify-edge upstreams --watch --admin {}\n\n",
        RESTART.as_secs(),
        edge.admin
    );
    text
}

fn columns() -> String {
    let mut text = "    s  answers  errors  p50 ms  p99 ms".to_owned();
    for number in 1..=REPLICAS {
        let _ = write!(text, " | {:<18}", format!("{number}: share score"));
    }
    text.push('\n');
    text
}

fn line(second: u64, moment: &Moment, replicas: &[Standing]) -> String {
    let ms = |quantile| {
        moment
            .latency
            .quantile(quantile)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let mut text = format!(
        "{second:>5}  {:>7}  {:>6}  {:>6.1}  {:>6.1}",
        moment.latency.count(),
        moment.errors,
        ms(0.5),
        ms(0.99)
    );
    let all: f64 = replicas.iter().map(|replica| replica.answers).sum();
    for replica in replicas {
        let share = 100.0 * replica.answers / all.max(1.0);
        let cell = format!("{share:>3.0} %  {:>5.3} {}", replica.score, replica.state);
        let _ = write!(text, " | {cell:<18}");
    }
    text.push('\n');
    if let Some(why) = &moment.first_error {
        let _ = writeln!(text, "       {why}");
    }
    text
}

/// A replica that is a process; it ends with this.
struct Process {
    child: Child,
    address: SocketAddr,
    died: Option<Instant>,
}

impl Process {
    fn start(address: SocketAddr) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(["demo", "--replica", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|error| format!("cannot start a replica: {error}"))?;
        let mut line = String::new();
        if let Some(stdout) = &mut child.stdout {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let address = line.trim().parse();
        Ok(Self {
            child,
            address: address.map_err(|_| "a replica did not start; is its port taken?".to_owned())?,
            died: None,
        })
    }

    /// What has happened to it, if it is new.
    fn look(&mut self) -> Option<String> {
        let now = Clock::System.now().monotonic;
        match self.died {
            None => {
                let status = self.child.try_wait().ok()??;
                self.died = Some(now);
                Some(format!("is dead: {status}"))
            }
            Some(since) if now.duration_since(since) >= RESTART => match Self::start(self.address) {
                Ok(new) => {
                    let pid = new.child.id();
                    *self = new;
                    Some(format!("is started again: pid {pid}"))
                }
                Err(why) => Some(why),
            },
            Some(_) => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a replica stands.
#[derive(Debug, Default, PartialEq)]
struct Standing {
    /// Attempts that were answered since the last look.
    answers: f64,
    score: f64,
    /// What is wrong with it, if anything is.
    state: String,
}

/// What the proxy says of its replicas.
struct Admin {
    client: Client,
    /// Answers so far, by replica.
    before: BTreeMap<String, f64>,
}

impl Admin {
    fn new(address: SocketAddr) -> Self {
        Self {
            client: Client::new(address),
            before: BTreeMap::new(),
        }
    }

    /// How the replicas at `addresses` stand; what cannot be asked for is 0.
    async fn replicas(&mut self, addresses: &[SocketAddr]) -> Vec<Standing> {
        let mut ask = async |path| {
            let answer = self.client.ask(&Question::get(path)).await;
            answer.map_or_else(
                |_| String::new(),
                |answer| String::from_utf8_lossy(&answer.body).into_owned(),
            )
        };
        let (metrics, status) = (ask("/metrics").await, ask("/upstreams").await);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let mut standings = Vec::new();
        for address in addresses {
            let name = address.to_string();
            let answers = answered(&metrics, &name);
            let before = self.before.insert(name, answers).unwrap_or_default();
            standings.push(Standing {
                answers: (answers - before).max(0.0),
                ..standing(&status, address)
            });
        }
        standings
    }
}

/// Answers of the replica `name` in the text of `/metrics`.
fn answered(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| {
        line.starts_with("dify_edge_upstream_dispatch_total{")
            && line.contains(&format!("replica=\"{name}\""))
            && line.contains("result=\"ok\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// What `/upstreams` says of the replica at `address`.
fn standing(status: &serde_json::Value, address: &SocketAddr) -> Standing {
    let url = format!("http://{address}");
    let all = status[0]["replicas"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let Some(replica) = all.iter().find(|replica| replica["url"] == url.as_str()) else {
        return Standing::default();
    };
    let breaker = replica["breaker"].as_str().unwrap_or_default();
    let state = match (replica["healthy"] == false, breaker) {
        (true, _) => "out",
        (false, "closed") => "",
        (false, other) => other,
    };
    Standing {
        answers: 0.0,
        score: replica["score"].as_f64().unwrap_or_default(),
        state: state.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_one_replica_and_failures_are_none() {
        let metrics = "dify_edge_upstream_dispatch_total{replica=\"a:1\",result=\"ok\",upstream=\"api\"} 7\n\
                       dify_edge_upstream_dispatch_total{replica=\"a:1\",result=\"reset\",upstream=\"api\"} 5\n\
                       dify_edge_upstream_dispatch_total{replica=\"a:11\",result=\"ok\",upstream=\"api\"} 3\n";
        assert_eq!((answered(metrics, "a:1"), answered(metrics, "b:1")), (7.0, 0.0));
    }

    #[test]
    fn a_line_has_each_replicas_share_score_and_trouble() {
        let status = serde_json::json!([{"replicas": [
            {"url": "http://127.0.0.1:1", "score": 0.97, "healthy": true, "breaker": "closed"},
            {"url": "http://127.0.0.1:2", "score": 0.05, "healthy": false, "breaker": "open"},
            {"url": "http://127.0.0.1:3", "score": 0.5, "healthy": true, "breaker": "half_open"},
        ]}]);
        let of = |port| standing(&status, &SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!([of(1).state, of(2).state, of(3).state], ["", "out", "half open"]);
        assert_eq!(of(4), Standing::default());
        let mut moment = Moment::default();
        moment.latency.record(Duration::from_millis(12));
        let replicas = [
            Standing {
                answers: 3.0,
                ..of(1)
            },
            Standing {
                answers: 1.0,
                ..of(2)
            },
        ];
        let text = line(9, &moment, &replicas);
        for expected in [
            "    9        1       0    12.",
            "|  75 %  0.970",
            "|  25 %  0.050 out",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}

//! The table that compares the two runs, and what it rests on.
//!
//! Pure: numbers in, text out. Where a number is only known within bounds, the bound that speaks against the proxy is
//! shown, and the footer says so.

use std::fmt::Write as _;
use std::time::Duration;

use super::load::{Outcome, Seen};
use crate::types::latency::Histogram;

/// What was seen of one run.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// What the clients saw.
    pub outcome: Outcome,
    /// Requests that reached the upstream, without health probes.
    pub upstream_requests: u64,
    /// The most that waited at the upstream at one time.
    pub waiting: u64,
    /// The most that waited inside the proxy at one time; nothing where there is none.
    pub queue: Option<u64>,
}

/// What stands below the table.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Servers behind the proxy.
    pub replicas: usize,
    /// Requests that each serves at once.
    pub slots: usize,
    /// Connections that the proxy keeps to each of them, at most.
    pub connections: usize,
    /// People whose lists are read and written.
    pub users: u16,
    /// Clients that read, stream, wait for whole answers, and write.
    pub clients: [usize; 4],
    /// Processors of this machine.
    pub cores: usize,
}

/// Is more of it better?
#[derive(Debug, Clone, Copy)]
enum Unit {
    Rate,
    Time,
    Count,
}

impl Unit {
    /// How to say that there is more, and that there is less.
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Rate => ["more", "less"],
            Self::Time => ["slower", "faster"],
            Self::Count => ["more", "fewer"],
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Rate => format!("{value:.0}"),
            Self::Time => format!("{value:.1} ms"),
            Self::Count if value.fract() == 0.0 => format!("{value:.0}"),
            Self::Count => format!("{value:.3}"),
        }
    }
}

/// The table and its footer.
pub(super) fn render(straight: &Run, proxied: &Run, setting: &Setting) -> String {
    let mut table = Table::default();
    table.line(["", "straight", "through dify-edge", ""]);
    let mut row = |label: &str, unit: Unit, value: &dyn Fn(&Run) -> Option<f64>| {
        table.row(label, unit, value(straight), value(proxied));
    };
    row("requests/s", Unit::Rate, &|run| {
        Some(per_second(run, rate_of_all))
    });
    row("  reads/s", Unit::Rate, &|run| {
        Some(per_second(run, |outcome| outcome.reads.in_time))
    });
    row("reads, mean", Unit::Time, &|run| {
        millis(run.outcome.reads.latency.mean())
    });
    row("  p50", Unit::Time, &|run| at(&run.outcome.reads.latency, 0.5));
    row("  p95", Unit::Time, &|run| at(&run.outcome.reads.latency, 0.95));
    row("  p99", Unit::Time, &|run| at(&run.outcome.reads.latency, 0.99));
    row("blocking chats, p50", Unit::Time, &|run| {
        at(&run.outcome.chats.latency, 0.5)
    });
    row("writes, p50", Unit::Time, &|run| {
        at(&run.outcome.writes.latency, 0.5)
    });
    row("  p99", Unit::Time, &|run| at(&run.outcome.writes.latency, 0.99));
    row("streams, first event p50", Unit::Time, &|run| {
        at(&run.outcome.streams.first, 0.5)
    });
    row("  p99", Unit::Time, &|run| at(&run.outcome.streams.first, 0.99));
    row("client requests", Unit::Count, &|run| {
        Some(run.outcome.answers() as f64)
    });
    row("errors", Unit::Count, &|run| Some(run.outcome.errors() as f64));
    row("upstream requests", Unit::Count, &|run| {
        Some(run.upstream_requests as f64)
    });
    row("  per client request", Unit::Count, &|run| {
        let answers = run.outcome.answers();
        (answers > 0).then(|| run.upstream_requests as f64 / answers as f64)
    });
    for (label, count) in [
        (
            "reads answered from memory",
            (|seen| seen.hits) as fn(&Seen) -> u64,
        ),
        ("  by another's fetch", |seen| seen.shared),
    ] {
        let share = |run: &Run| share(&run.outcome.reads, count);
        table.line([label, &share(straight), &share(proxied), ""]);
    }
    let mut row = |label: &str, value: &dyn Fn(&Run) -> Option<f64>| {
        table.row(label, Unit::Count, value(straight), value(proxied));
    };
    row("longest backlog", &|run| {
        Some((run.waiting + run.queue.unwrap_or(0)) as f64)
    });
    row("  at the upstream", &|run| Some(run.waiting as f64));
    row("  inside the proxy", &|run| run.queue.map(|queue| queue as f64));
    let mut text = table.text();
    for (name, run) in [("straight", straight), ("through dify-edge", proxied)] {
        let outcome = &run.outcome;
        let first = outcome
            .all()
            .into_iter()
            .find_map(|seen| seen.first_error.as_deref());
        if let Some(why) = first {
            let _ = writeln!(text, "First error {name}: {why}");
        }
    }
    text.push('\n');
    text.push_str(&footer(setting));
    text
}

fn footer(setting: &Setting) -> String {
    let Setting {
        replicas,
        slots,
        connections,
        users,
        clients: [readers, chatters, askers, writers],
        cores,
    } = setting;
    format!(
        "\
Simulated: {replicas} replicas of dify-api, {slots} requests at once each, that replay answers captured from a real server
with the times it took when nothing else was asked. Under load a real one gets slower; these do not. The one
person captured is multiplied to {users}. Both runs have the same {readers} readers (back to back, Zipf), {chatters} users of
streams, {askers} of blocking chats and {writers} writers, who arrive within the first second and ask from the same seed.
The proxy begins with an empty cache and keeps at most {connections} connections to each replica, which leaves one for
health probes.
Clients, proxy and replicas share {cores} cores.
Backlog is what waits for a slot: straight, the most seen at a look (every 20 ms); through dify-edge, the sum of each
replica's exact worst and the longest queue inside the proxy at a look. An answer counts to the rates when it ended
in time, to everything else in any case; a page that differs from the captured one counts as an error. Pages with signed
links are left out: a replay cannot sign anew.
"
    )
}

fn rate_of_all(outcome: &Outcome) -> u64 {
    outcome.all().iter().map(|seen| seen.in_time).sum()
}

fn per_second(run: &Run, count: impl Fn(&Outcome) -> u64) -> f64 {
    let seconds = run.outcome.duration.as_secs_f64();
    count(&run.outcome) as f64 / seconds.max(f64::MIN_POSITIVE)
}

/// Which share of the answers `count` counts.
fn share(seen: &Seen, count: fn(&Seen) -> u64) -> String {
    match seen.latency.count() {
        0 => "-".into(),
        all => format!("{:.1} %", 100.0 * count(seen) as f64 / all as f64),
    }
}

fn at(histogram: &Histogram, quantile: f64) -> Option<f64> {
    millis(histogram.quantile(quantile))
}

fn millis(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64() * 1000.0)
}

/// How much more or less `after` is than `before`, in words; nothing where that cannot be said.
fn compare(unit: Unit, before: f64, after: f64) -> String {
    let [more, less] = unit.words();
    if before <= 0.0 || after <= 0.0 {
        return String::new();
    }
    let (factor, word) = if after >= before {
        (after / before, more)
    } else {
        (before / after, less)
    };
    if factor < 1.05 {
        "same".into()
    } else {
        format!("{factor:.1}x {word}")
    }
}

#[derive(Debug, Default)]
struct Table(Vec<[String; 4]>);

impl Table {
    fn line(&mut self, cells: [&str; 4]) {
        self.0.push(cells.map(str::to_owned));
    }

    fn row(&mut self, label: &str, unit: Unit, straight: Option<f64>, proxied: Option<f64>) {
        let show = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| unit.show(value));
        let ratio = match (straight, proxied) {
            (Some(before), Some(after)) => compare(unit, before, after),
            _ => String::new(),
        };
        self.0.push([label.into(), show(straight), show(proxied), ratio]);
    }

    fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let [first, second, third, fourth] = [0, 1, 2, 3].map(width);
        let mut text = String::new();
        for [label, straight, proxied, ratio] in &self.0 {
            let line = format!("{label:<first$}  {straight:>second$}  {proxied:>third$}  {ratio:>fourth$}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(latency_ms: u64, count: u64, hits: u64) -> Run {
        let mut reads = Seen {
            in_time: count,
            hits,
            ..Seen::default()
        };
        for _ in 0..count {
            reads.latency.record(Duration::from_millis(latency_ms));
        }
        Run {
            outcome: Outcome {
                duration: Duration::from_secs(2),
                reads,
                ..Outcome::default()
            },
            upstream_requests: count - hits,
            waiting: 150,
            queue: None,
        }
    }

    fn setting() -> Setting {
        Setting {
            replicas: 3,
            slots: 10,
            connections: 27,
            users: 20,
            clients: [180, 12, 4, 4],
            cores: 2,
        }
    }

    fn cells<'a>(text: &'a str, label: &str) -> Vec<&'a str> {
        let line = text.lines().find(|line| line.starts_with(label)).unwrap();
        line[label.len()..].split_whitespace().collect()
    }

    #[test]
    fn the_table_compares_both_runs() {
        let proxied = Run {
            waiting: 1,
            queue: Some(2),
            ..run(10, 2000, 1900)
        };
        let text = render(&run(100, 200, 0), &proxied, &setting());
        assert_eq!(cells(&text, "requests/s"), ["100", "1000", "10.0x", "more"]);
        assert_eq!(
            cells(&text, "reads, mean"),
            ["100.0", "ms", "10.0", "ms", "10.0x", "faster"]
        );
        assert_eq!(cells(&text, "longest backlog"), ["150", "3", "50.0x", "fewer"]);
        assert_eq!(cells(&text, "  inside the proxy"), ["-", "2"]);
        assert_eq!(
            cells(&text, "  per client request"),
            ["1", "0.050", "20.0x", "fewer"]
        );
        assert_eq!(
            cells(&text, "reads answered from memory"),
            ["0.0", "%", "95.0", "%"]
        );
        assert!(text.contains("180 readers"));
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }

    #[test]
    fn a_proxy_that_is_worse_is_said_to_be_worse() {
        assert_eq!(compare(Unit::Rate, 100.0, 50.0), "2.0x less");
        assert_eq!(compare(Unit::Time, 10.0, 30.0), "3.0x slower");
        assert_eq!(compare(Unit::Count, 10.0, 30.0), "3.0x more");
        assert_eq!(compare(Unit::Time, 10.0, 10.2), "same");
        assert_eq!(compare(Unit::Count, 0.0, 3.0), "");
    }

    #[test]
    fn the_first_error_is_named() {
        let mut bad = run(1, 1, 0);
        bad.outcome.writes.first_error = Some("POST /x answered 503".into());
        let text = render(&run(1, 1, 0), &bad, &setting());
        assert!(text.contains("First error through dify-edge: POST /x answered 503"));
    }
}

//! Lays out upstreams: what is true of each as a whole, its lanes, and a row for each replica with lines for what is
//! out of the ordinary.
//!
//! Pure. No line is longer than [`WIDTH`]; what is too long for that loses its middle.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::failover::{self, Failover};
use crate::cli::grid::{grid, widths};

/// Characters of the longest line.
const WIDTH: usize = 100;
/// A zone has no more characters.
const ZONE: usize = 14;
/// A URL is never made shorter than this.
const SHORTEST_URL: usize = 12;
/// A part of a score that is less is shown: what is as near to 1 shows nowhere else.
const ORDINARY: f64 = 0.995;
/// Columns that are words; one more where there are two clusters.
const LEFT: usize = 4;
/// What is not known.
pub(super) const NOTHING: &str = "-";

/// What is read of an upstream.
#[derive(Debug, Deserialize)]
pub(super) struct Upstream {
    name: String,
    policy: String,
    load_variance: f64,
    load_variance_threshold: f64,
    lanes: Vec<Lane>,
    failover: Option<Failover>,
    replicas: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
struct Lane {
    lane: String,
    in_flight: u64,
    slots: u64,
    queue: u64,
    longest_queue: u64,
}

#[derive(Debug, Deserialize)]
struct Replica {
    url: String,
    zone: Option<String>,
    leaving: bool,
    standby: bool,
    healthy: bool,
    in_flight: u64,
    slots: u64,
    score: f64,
    score_parts: BTreeMap<String, f64>,
    breaker: String,
    half_open_in_ms: Option<u64>,
    first_byte: Option<FirstByte>,
    last_error: Option<LastError>,
}

#[derive(Debug, Deserialize)]
struct FirstByte {
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Deserialize)]
struct LastError {
    kind: String,
    detail: String,
    seconds_ago: u64,
}

/// The whole.
pub(super) fn table(upstreams: &[Upstream]) -> String {
    if upstreams.is_empty() {
        return "no upstreams\n".to_owned();
    }
    let parts: Vec<_> = upstreams.iter().map(upstream).collect();
    parts.join("\n")
}

fn upstream(upstream: &Upstream) -> String {
    let heading = format!(
        "{}: {}, load variance {:.1} (threshold {})",
        upstream.name, upstream.policy, upstream.load_variance, upstream.load_variance_threshold
    );
    let mut text = String::new();
    push(&mut text, &heading);
    for row in grid(&lanes(&upstream.lanes), 1).lines() {
        push(&mut text, &format!("  {row}"));
    }
    text.push('\n');
    if let Some(failover) = &upstream.failover {
        for line in failover::lines(failover) {
            push(&mut text, &format!("  {line}"));
        }
        text.push('\n');
    }
    let has_clusters = upstream.failover.is_some();
    if upstream.replicas.is_empty() {
        push(&mut text, "  no replicas");
    }
    let left = LEFT + usize::from(has_clusters);
    let rows = grid(&replicas(&upstream.replicas, has_clusters), left);
    for (index, row) in rows.lines().enumerate() {
        push(&mut text, &format!("  {row}"));
        // The first row are the titles.
        let Some(replica) = index.checked_sub(1).and_then(|n| upstream.replicas.get(n)) else {
            continue;
        };
        for note in notes(replica) {
            push(&mut text, &format!("      {note}"));
        }
    }
    text
}

/// Lanes side by side.
fn lanes(lanes: &[Lane]) -> Vec<Vec<String>> {
    let row = |title: &str, cell: &dyn Fn(&Lane) -> String| {
        std::iter::once(title.to_owned())
            .chain(lanes.iter().map(cell))
            .collect()
    };
    vec![
        row("", &|lane| fitted(&lane.lane, ZONE)),
        row("in flight", &|lane| format!("{}/{}", lane.in_flight, lane.slots)),
        row("queue", &|lane| lane.queue.to_string()),
        row("longest", &|lane| lane.longest_queue.to_string()),
    ]
}

/// A row for each replica, under titles; nothing without replicas.
fn replicas(replicas: &[Replica], has_clusters: bool) -> Vec<Vec<String>> {
    let titles = [
        "replica",
        "zone",
        "state",
        "breaker",
        "score",
        "in flight",
        "p50",
        "p99",
    ];
    let cells = |replica: &Replica| {
        let [p50, p99] = match &replica.first_byte {
            Some(times) => [times.p50_ms, times.p99_ms].map(duration),
            None => [NOTHING; 2].map(str::to_owned),
        };
        vec![
            fitted(&replica.url, WIDTH),
            fitted(replica.zone.as_deref().unwrap_or(NOTHING), ZONE),
            state(replica).to_owned(),
            fitted(&replica.breaker.replace('_', " "), ZONE),
            format!("{:.3}", replica.score),
            format!("{}/{}", replica.in_flight, replica.slots),
            p50,
            p99,
        ]
    };
    if replicas.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(replicas.iter().map(cells));
    if has_clusters {
        let cluster = |replica: &Replica| if replica.standby { "standby" } else { "primary" };
        let column = std::iter::once("cluster").chain(replicas.iter().map(cluster));
        for (row, cell) in rows.iter_mut().zip(column) {
            row.insert(1, cell.to_owned());
        }
    }
    // The rest of the line is the URL's.
    let others: usize = widths(&rows).iter().skip(1).map(|width| width + 2).sum();
    let left = WIDTH.saturating_sub(others + 2).max(SHORTEST_URL);
    for row in &mut rows {
        row[0] = fitted(&row[0], left);
    }
    rows
}

fn state(replica: &Replica) -> &'static str {
    match replica {
        Replica { leaving: true, .. } => "leaving",
        Replica { healthy: false, .. } => "unhealthy",
        _ => "healthy",
    }
}

/// What is out of the ordinary.
fn notes(replica: &Replica) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(wait) = replica.half_open_in_ms {
        notes.push(format!("half open in {} s", wait.div_ceil(1000)));
    }
    let mut parts = String::new();
    for (part, value) in &replica.score_parts {
        if *value < ORDINARY {
            let _ = write!(parts, " {} {value:.2}", part.replace('_', " "));
        }
    }
    if !parts.is_empty() {
        notes.push(format!("score:{parts}"));
    }
    if let Some(error) = &replica.last_error {
        let age = age(error.seconds_ago);
        let kind = error.kind.replace('_', " ");
        notes.push(format!("last error {age} ago: {kind}: {}", error.detail));
    }
    notes
}

/// Milliseconds, with three digits or all before the point.
pub(super) fn duration(millis: f64) -> String {
    match millis {
        ..10.0 => format!("{millis:.1} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        ..10_000.0 => format!("{:.1} s", millis / 1000.0),
        _ => format!("{:.0} s", millis / 1000.0),
    }
}

pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Adds a line.
fn push(text: &mut String, line: &str) {
    text.push_str(&fitted(line, WIDTH));
    text.push('\n');
}

/// `text` in `most` characters, without those that a terminal would obey.
fn fitted(text: &str, most: usize) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let chars: Vec<char> = plain.collect();
    if chars.len() <= most {
        return chars.into_iter().collect();
    }
    let tail = most / 2;
    let head = most - tail - 1;
    let (head, tail) = (&chars[..head], &chars[chars.len() - tail..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn shown(upstreams: Value) -> String {
        table(&serde_json::from_value::<Vec<Upstream>>(upstreams).unwrap())
    }

    fn replica(url: &str) -> Value {
        json!({
            "url": url, "zone": null, "labels": {}, "leaving": false, "standby": false, "healthy": true,
            "in_flight": 3, "slots": 80, "score": 0.998,
            "score_parts": {"cpu": 1.0, "errors": 1.0, "in_flight": 0.998, "start": 1.0},
            "consecutive_failures": 0, "breaker": "closed", "half_open_in_ms": null,
            "first_byte": {"answers": 9, "p50_ms": 4.25, "p99_ms": 1250.0}, "last_error": null, "addresses": [],
        })
    }

    fn upstream(replicas: &[Value]) -> Value {
        json!([{
            "name": "api", "policy": "weighted_health", "load_variance": 12.345, "load_variance_threshold": 50.0,
            "lanes": [
                {"lane": "short", "in_flight": 3, "slots": 160, "queue": 0, "longest_queue": 2},
                {"lane": "generation", "in_flight": 0, "slots": 112, "queue": 4, "longest_queue": 17},
            ],
            "failover": null, "replicas": replicas,
        }])
    }

    #[test]
    fn what_is_ordinary_is_a_row_and_what_is_not_has_lines_below_it() {
        let mut failing = replica("http://10.0.0.2:5001");
        for (field, value) in [
            ("zone", json!("eu-1a")),
            ("healthy", json!(false)),
            ("in_flight", json!(0)),
            ("score", json!(0.014)),
            (
                "score_parts",
                json!({"cpu": 1.0, "errors": 0.28, "in_flight": 1.0, "probe": 0.05}),
            ),
            ("breaker", json!("open")),
            ("half_open_in_ms", json!(11_001)),
            ("first_byte", json!(null)),
            (
                "last_error",
                json!({"kind": "connect_failed", "detail": "the upstream refuses connections", "seconds_ago": 3}),
            ),
        ] {
            failing[field] = value;
        }
        assert_eq!(
            shown(upstream(&[replica("http://10.0.0.1:5001"), failing])),
            "\
api: weighted_health, load variance 12.3 (threshold 50)
             short  generation
  in flight  3/160       0/112
  queue          0           4
  longest        2          17

  replica               zone   state      breaker  score  in flight     p50    p99
  http://10.0.0.1:5001  -      healthy    closed   0.998       3/80  4.2 ms  1.2 s
  http://10.0.0.2:5001  eu-1a  unhealthy  open     0.014       0/80       -      -
      half open in 12 s
      score: errors 0.28 probe 0.05
      last error 3 s ago: connect failed: the upstream refuses connections
"
        );
        assert_eq!(shown(json!([])), "no upstreams\n");
        assert!(shown(upstream(&[])).ends_with("\n\n  no replicas\n"));
    }

    #[test]
    fn a_replica_has_the_state_that_says_most() {
        for (leaving, healthy, state) in [
            (false, true, "healthy"),
            (false, false, "unhealthy"),
            (true, false, "leaving"),
            (true, true, "leaving"),
        ] {
            let mut replica = replica("http://a:1");
            replica["leaving"] = leaving.into();
            replica["healthy"] = healthy.into();
            let text = shown(upstream(&[replica]));
            let row = text.lines().find(|line| line.contains("http://a:1")).unwrap();
            assert_eq!(row.split_whitespace().nth(2), Some(state), "{row}");
        }
    }

    /// Of an instance that has heard; `why` is what troubles it.
    fn failover(why: Option<&str>) -> Value {
        json!({
            "epoch": 3, "active": "primary", "mode": "auto", "writes": true, "instance": "edge-1:42:9f3c",
            "holder": "edge-2:43:01ab", "holds_lease": false, "confirmed_ms_ago": 120, "trouble": why,
            "healthy": {"primary": 1.0, "standby": 1.0}, "healthy_here": {"primary": 1.0, "standby": 1.0},
            "owners": 0, "last_shift": null,
        })
    }

    #[test]
    fn where_there_are_two_clusters_it_says_which_has_the_writes_and_of_which_a_replica_is() {
        let mut standby = replica("http://10.0.0.2:5001");
        standby["standby"] = true.into();
        let mut upstreams = upstream(&[replica("http://10.0.0.1:5001"), standby]);
        upstreams[0]["failover"] = failover(None);
        let text = shown(upstreams);
        let (_, below) = text.split_once("\n\n").unwrap();
        assert_eq!(
            below,
            "  failover   writes at primary, epoch 3 (auto)
  lease      held by edge-2:43:01ab (not this one); confirmed 120 ms ago
  healthy    primary 100 %, standby 100 %
  remembers  the cluster of 0 pieces of work

  replica               cluster  zone  state    breaker  score  in flight     p50    p99
  http://10.0.0.1:5001  primary  -     healthy  closed   0.998       3/80  4.2 ms  1.2 s
  http://10.0.0.2:5001  standby  -     healthy  closed   0.998       3/80  4.2 ms  1.2 s
"
        );
    }

    #[test]
    fn times_have_the_unit_that_keeps_them_short() {
        for (millis, text) in [
            (0.04, "0.0 ms"),
            (9.94, "9.9 ms"),
            (10.0, "10 ms"),
            (999.4, "999 ms"),
            (1000.0, "1.0 s"),
            (65_000.0, "65 s"),
        ] {
            assert_eq!(duration(millis), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        assert_eq!(fitted("http://api-0:5001", 17), "http://api-0:5001");
        assert_eq!(fitted("http://api-0.dify.svc:5001", 17), "http://a…svc:5001");
        assert_eq!(fitted("a\x1b[2Jb\n", 9), "a?[2Jb?");
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_none_has_what_a_terminal_obeys(
            urls in prop::collection::vec(".{0,150}", 0..4), zone in prop::option::of(".{0,60}"),
            detail in ".{0,200}", numbers in prop::array::uniform4(any::<u64>()), score in 0.0..1.0f64,
        ) {
            let [slots, wait, age, most] = numbers;
            let replicas = urls.iter().map(|url| {
                let mut replica = replica(url);
                replica["zone"] = json!(zone);
                replica["healthy"] = json!(false);
                replica["slots"] = json!(slots % 1_000_000);
                replica["score"] = json!(score);
                replica["breaker"] = json!("half_open");
                replica["half_open_in_ms"] = json!(wait);
                replica["first_byte"] = json!({"answers": 1, "p50_ms": 1e7 * score, "p99_ms": 1e7});
                replica["last_error"] = json!({"kind": "connect_timeout", "detail": detail, "seconds_ago": age});
                replica
            });
            let mut upstreams = upstream(&replicas.collect::<Vec<_>>());
            upstreams[0]["failover"] = failover(Some(&detail));
            upstreams[0]["lanes"][0]["longest_queue"] = json!(most);
            let text = shown(upstreams);
            for line in text.lines() {
                prop_assert!(line.chars().count() <= WIDTH, "{}", line);
                prop_assert!(!line.contains(char::is_control), "{:?}", line);
            }
            // Nothing of a row but the URL is cut.
            let rows = text.lines().filter(|line| line.ends_with(" 10000 s"));
            prop_assert_eq!(rows.count(), urls.len());
        }
    }
}

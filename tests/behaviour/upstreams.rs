//! A replica that fails shows beside its twin that does not: in `/upstreams`, in the command of that name, in the
//! metrics.

use serde_json::Value;

use crate::commands::run;
use crate::support::client::get;
use crate::support::edge::{self, Running};
use crate::support::metrics;
use crate::support::origin::{self, Origin};

const PATH: &str = "/console/api/apps/3f0c2b9e-0000-4000-8000-000000000001/secret-name";

/// A replica in zone `a` that is well and one in zone `b` whose breaker its failures have opened.
async fn twins() -> (Origin, Origin, Running) {
    let well = Origin::start(|_| async { origin::json(200, "{}") }).await;
    let failing = Origin::start(|_| async { origin::json(503, "{}") }).await;
    let edge = edge::start(&[well.address, failing.address], |config| {
        let api = edge::api(config);
        api.replicas[0].zone = Some("a".into());
        api.replicas[1].zone = Some("b".into());
    })
    .await;
    for _ in 0..60 {
        edge.ask(get(PATH, &[("Cookie", "access_token=a")])).await;
    }
    (well, failing, edge)
}

/// The row of a replica, and the lines below it.
fn of<'a>(text: &'a str, url: &str) -> (Vec<&'a str>, Vec<&'a str>) {
    let mut lines = text.lines().skip_while(|line| !line.contains(url));
    let row = lines.next().unwrap_or_else(|| panic!("no {url}: {text}"));
    let notes = lines
        .map_while(|line| line.strip_prefix("      "))
        .collect::<Vec<_>>();
    (row.split_whitespace().collect(), notes)
}

#[tokio::test]
async fn a_replica_that_fails_shows_beside_its_twin() {
    let (well, failing, edge) = twins().await;
    let (code, text, complained) = run(edge.admin, &["upstreams"], &[]).await;
    assert_eq!((code, complained.as_str()), (0, ""));
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("secret"), "{text}");
    let heading = "api: round_robin, load variance 0.0 (threshold 50)\n";
    assert!(text.starts_with(heading), "{text}");

    let (row, notes) = of(&text, &well.address.to_string());
    assert_eq!(row[1..6], ["a", "healthy", "closed", "1.000", "0/80"], "{text}");
    assert!(
        matches!(row[6..], [p50, "ms", p99, "ms"] if p50 != "-" && p99 != "-"),
        "{text}"
    );
    assert!(notes.is_empty(), "{text}");
    let (row, notes) = of(&text, &failing.address.to_string());
    assert_eq!(row[1..4], ["b", "healthy", "open"], "{text}");
    assert!(row[4].parse::<f64>().expect("a score") < 0.1, "{text}");
    assert_eq!(row[5..], ["0/80", "-", "-"], "{text}");
    assert_eq!(notes.len(), 3, "{text}");
    let wait = notes[0]
        .strip_prefix("half open in ")
        .and_then(|rest| rest.strip_suffix(" s"));
    assert!(
        (1..=30).contains(&wait.expect("a wait").parse().expect("seconds")),
        "{text}"
    );
    assert!(notes[1].starts_with("score: errors 0.0"), "{text}");
    let (last, why) = notes[2].split_once(" s ago: ").expect("an age");
    assert!(last.starts_with("last error "), "{text}");
    assert_eq!(why, "status: the answer is 503 Service Unavailable");
}

#[tokio::test]
async fn the_listener_says_the_same_in_json() {
    let (well, failing, edge) = twins().await;
    let (code, text, _) = run(edge.admin, &["upstreams", "--json"], &[]).await;
    assert_eq!(code, 0);
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let api = &json[0];
    assert_eq!(
        (&api["policy"], &api["load_variance_threshold"]),
        (&"round_robin".into(), &50.0.into())
    );
    let [first, second] = [&api["replicas"][0], &api["replicas"][1]];
    assert_eq!(first["url"], format!("http://{}", well.address));
    assert_eq!(
        (&first["zone"], &first["last_error"]),
        (&"a".into(), &Value::Null)
    );
    let times = &first["first_byte"];
    assert!(times["answers"].as_u64() >= Some(20), "{times}");
    let millis = |name: &str| times[name].as_f64().expect("milliseconds");
    assert!(
        0.0 < millis("p50_ms") && millis("p50_ms") <= millis("p99_ms"),
        "{times}"
    );
    assert_eq!(second["url"], format!("http://{}", failing.address));
    assert_eq!(
        (&second["zone"], &second["first_byte"], &second["breaker"]),
        (&"b".into(), &Value::Null, &"open".into())
    );
    let error = &second["last_error"];
    assert_eq!(error["kind"], "status");
    assert!(error["seconds_ago"].is_u64(), "{error}");
    assert!(second["score"].as_f64() < first["score"].as_f64());
    let opened = ["to=\"open\"", &failing.address.to_string()];
    let transitions = "dify_edge_breaker_transitions_total";
    assert_eq!(metrics::sum(edge.admin, transitions, &opened).await, 1.0);
}

#[tokio::test]
async fn a_replica_that_is_gone_is_unhealthy_and_that_is_counted_once() {
    let well = Origin::start(|_| async { origin::json(200, "{}") }).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port that nobody listens on");
    let edge = edge::start(&[gone, well.address], |_| {}).await;
    for _ in 0..10 {
        edge.ask(get(PATH, &[("Cookie", "access_token=a")])).await;
    }
    let (_, text, _) = run(edge.admin, &["upstreams"], &[]).await;
    let (row, notes) = of(&text, &gone.to_string());
    assert_eq!(row[1..4], ["-", "unhealthy", "closed"], "{text}");
    let why = ": the upstream refuses connections";
    assert!(notes.iter().any(|note| note.ends_with(why)), "{text}");
    let changes = "dify_edge_replica_transitions_total";
    let to_unhealthy = ["to=\"unhealthy\"", &gone.to_string()];
    assert_eq!(metrics::sum(edge.admin, changes, &to_unhealthy).await, 1.0);
    assert_eq!(metrics::sum(edge.admin, changes, &[]).await, 1.0);
}

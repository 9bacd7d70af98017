//! What people see of failover and how they steer it: `POST /failover`, the command, the table, metrics, the log; and what
//! clients are told where a write has no cluster.

use dify_edge::config::{AccessLog, Config, Token};
use dify_edge::types::units::Span;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::commands::run;
use crate::failover::{read, write};
use crate::support::client::{Answer, Client, post};
use crate::support::edge::{self, Running};
use crate::support::fleet::{TOKEN, shared};
use crate::support::metrics::{self, sum};
use crate::support::origin::{Origin, json as answer_json};
use crate::support::redis::Redis;
use crate::support::{child, eventually};

const VARIABLE: &str = "DIFY_EDGE_ADMIN_TOKEN";

/// Two clusters of one replica each, which say their names.
struct Clusters {
    primary: Origin,
    standby: Origin,
}

impl Clusters {
    async fn start() -> Self {
        let named = |name| Origin::start(move |_| async move { answer_json(200, name) });
        Self {
            primary: named("primary").await,
            standby: named("standby").await,
        }
    }

    fn configure(&self, config: &mut Config) {
        config.admin.token = Some(Token(TOKEN.into()));
        let api = edge::api(config);
        api.standby = vec![edge::replica(&self.standby.address)];
        api.health_check.interval = Span::millis(50);
        // Other tests keep this machine busy.
        api.health_check.timeout = Span::secs(5);
    }

    /// An instance before them.
    async fn edge(&self, change: impl FnOnce(&mut Config)) -> Running {
        edge::start(&[self.primary.address], |config| {
            self.configure(config);
            change(config);
        })
        .await
    }
}

/// Who answers a read and a write.
async fn who_answers(edge: &Running) -> [String; 2] {
    let mut names = [String::new(), String::new()];
    for (name, request) in names.iter_mut().zip([read(), write()]) {
        let answer = edge.ask(request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *name = answer.text();
    }
    names
}

fn steering(body: &Value) -> Vec<u8> {
    let bearer = format!("Bearer {TOKEN}");
    post("/failover", &[("Authorization", &bearer)], &body.to_string())
}

async fn steer(edge: &Running, body: Value) -> Answer {
    Client::connect(edge.admin).await.exchange(steering(&body)).await
}

/// What `/upstreams` says of the failover of `api`.
async fn status(edge: &Running) -> Value {
    metrics::ask(edge.admin, "/upstreams").await.json()[0]["failover"].clone()
}

#[tokio::test]
async fn reads_and_writes_go_at_once_where_an_operator_says_and_back_when_the_primary_is_well() {
    let clusters = Clusters::start().await;
    let edge = clusters
        .edge(|config| config.failback.after = Span::secs(1))
        .await;
    assert_eq!(who_answers(&edge).await, ["primary", "primary"]);

    let done = steer(&edge, json!({"to": "standby"})).await;
    assert_eq!(done.status, 200, "{}", done.text());
    let expected = json!({"upstreams": [{
        "upstream": "api", "epoch": 2, "before": "primary", "active": "standby", "mode": "standby", "healthy": 1.0,
    }]});
    assert_eq!(done.json(), expected);
    assert_eq!(who_answers(&edge).await, ["standby", "standby"]);
    let held = status(&edge).await;
    for (name, value) in [
        ("epoch", json!(2)),
        ("active", json!("standby")),
        ("mode", json!("standby")),
        ("writes", json!(true)),
        ("holds_lease", json!(true)),
        ("trouble", json!(null)),
        ("owners", json!(0)),
    ] {
        assert_eq!(held[name], value, "{name}: {held}");
    }
    assert_eq!(held["last_shift"]["cause"], "operator");
    assert_eq!(held["last_shift"]["by"], held["instance"]);
    let ready = metrics::ask(edge.admin, "/ready").await.json();
    assert_eq!(ready["upstreams"][0]["failover"]["active"], "standby");

    let asked = Instant::now();
    let done = steer(&edge, json!({"to": "auto", "upstream": "api"}))
        .await
        .json();
    let begun = &done["upstreams"][0];
    assert_eq!(
        (&begun["epoch"], &begun["before"], &begun["active"]),
        (&json!(4), &json!("standby"), &json!("standby"))
    );
    eventually("the primary to have the writes back", || async {
        (who_answers(&edge).await == ["primary", "primary"]).then_some(())
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let back = status(&edge).await;
    assert_eq!(
        (&back["epoch"], &back["last_shift"]["cause"], &back["mode"]),
        (&json!(5), &json!("recovered"), &json!("auto"))
    );
}

#[tokio::test]
async fn what_an_operator_holds_stays_when_the_cluster_fails_and_goes_when_health_decides_again() {
    let clusters = Clusters::start().await;
    let edge = clusters
        .edge(|config| {
            config.failover.after = Span::millis(200);
            edge::api(config).health_check.timeout = Span::millis(500);
        })
        .await;
    assert_eq!(steer(&edge, json!({"to": "primary"})).await.status, 200);
    clusters.primary.stop();
    metrics::until_healthy(edge.admin, 1.0).await;
    eventually("a beat after that", || async {
        (status(&edge).await["healthy"]["primary"] == 0.0).then_some(())
    })
    .await;
    let held = status(&edge).await;
    assert_eq!((&held["active"], &held["epoch"]), (&json!("primary"), &json!(3)));
    assert_eq!(sum(edge.admin, "dify_edge_failover_held", &[]).await, 1.0);

    assert_eq!(steer(&edge, json!({"to": "auto"})).await.status, 200);
    eventually("the standby to take over", || async {
        (status(&edge).await["active"] == "standby").then_some(())
    })
    .await;
    assert_eq!(who_answers(&edge).await, ["standby", "standby"]);
    assert_eq!(status(&edge).await["last_shift"]["cause"], "unhealthy");
    assert_eq!(sum(edge.admin, "dify_edge_failover_held", &[]).await, 0.0);
}

#[tokio::test]
async fn only_who_has_the_token_steers_and_what_makes_no_sense_is_named() {
    let clusters = Clusters::start().await;
    let edge = clusters.edge(|_| {}).await;
    let body = "{\"to\": \"standby\"}";
    let other = ("Authorization", "Bearer another-token-of-somebody");
    let right = format!("Bearer {TOKEN}");
    let page = [("Authorization", &*right), ("Origin", "http://127.0.0.1")];
    for (fields, expected) in [(&[][..], 401), (&[other], 401), (&page, 403)] {
        let answer = Client::connect(edge.admin)
            .await
            .exchange(post("/failover", fields, body))
            .await;
        assert_eq!(answer.status, expected, "{fields:?}");
    }
    let without = clusters.edge(|config| config.admin.token = None).await;
    assert_eq!(steer(&without, json!({"to": "standby"})).await.status, 403);

    for (body, words) in [
        (json!({}), "to: must be standby, primary or auto"),
        (json!({"to": "both"}), "to: unknown variant `both`"),
        (
            json!({"to": "standby", "upstream": "web"}),
            "upstream: none that is called `web` has a standby; with one there are: api",
        ),
    ] {
        let answer = steer(&edge, body).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &json!("bad_request"))
        );
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.starts_with(words), "{message}");
    }
    let alone = clusters.edge(|config| edge::api(config).standby.clear()).await;
    let answer = steer(&alone, json!({"to": "standby"})).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("upstream: none has a standby"),
        "{}",
        answer.text()
    );
    assert_eq!(
        metrics::ask(alone.admin, "/upstreams").await.json()[0]["failover"],
        json!(null)
    );
    for edge in [edge, without, alone] {
        assert_eq!(who_answers(&edge).await, ["primary", "primary"]);
    }
}

#[tokio::test]
async fn the_other_instances_follow_within_a_second_and_nobody_is_steered_without_redis() {
    let mut redis = Redis::start().await;
    let clusters = Clusters::start().await;
    let mut edges = Vec::new();
    for _ in 0..2 {
        edges.push(clusters.edge(|config| shared(config, &redis.url())).await);
    }
    for edge in &edges {
        eventually("the epoch to be heard", || async {
            (status(edge).await["epoch"] == 1).then_some(())
        })
        .await;
    }
    let holders: Vec<_> = [status(&edges[0]).await, status(&edges[1]).await]
        .iter()
        .map(|status| (status["holder"].clone(), status["holds_lease"] == true))
        .collect();
    assert_eq!(holders[0].0, holders[1].0);
    assert!(holders[0].1 != holders[1].1, "{holders:?}");

    // Whoever decides, both may be asked.
    for (asked, (to, epoch)) in [(0, ("standby", 2)), (1, ("primary", 3)), (0, ("standby", 4))] {
        let start = Instant::now();
        let done = steer(&edges[asked], json!({"to": to})).await;
        assert_eq!(
            (done.status, &done.json()["upstreams"][0]["epoch"]),
            (200, &json!(epoch))
        );
        assert_eq!(who_answers(&edges[asked]).await, [to, to]);
        eventually("the other to follow", || async {
            (status(&edges[1 - asked]).await["epoch"] == epoch).then_some(())
        })
        .await;
        assert_eq!(who_answers(&edges[1 - asked]).await, [to, to]);
        // The promise is one second; other tests keep this machine busy.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    for edge in &edges {
        let shifts = |cause| sum(edge.admin, "dify_edge_failover_shifts_total", cause);
        assert_eq!(shifts(&[]).await, 3.0);
        assert_eq!(shifts(&["cause=\"operator\""]).await, 3.0);
    }
    assert_eq!(status(&edges[0]).await["last_shift"], {
        let mut other = status(&edges[1]).await["last_shift"].clone();
        other["seconds_ago"] = status(&edges[0]).await["last_shift"]["seconds_ago"].clone();
        other
    });

    redis.kill();
    for edge in &edges {
        for to in ["primary", "auto"] {
            let refused = steer(edge, json!({"to": to})).await;
            assert_eq!(refused.status, 503, "{}", refused.text());
            assert_eq!(refused.json()["code"], "service_unavailable");
            let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
            let words = "api: it cannot be confirmed, so nothing has changed as far as is known: ";
            assert!(
                message.starts_with(words) && message.len() > words.len(),
                "{message}"
            );
        }
        eventually("it to be known that nobody answers", || async {
            status(edge).await["trouble"].is_string().then_some(())
        })
        .await;
        let now = status(edge).await;
        assert_eq!((&now["epoch"], &now["mode"]), (&json!(4), &json!("standby")));
        assert_eq!(who_answers(edge).await, ["standby", "standby"]);
    }

    // Who knows the epoch tells an empty Redis of it.
    redis.start_again().await;
    eventually("to be steered again", || async {
        (steer(&edges[0], json!({"to": "primary"})).await.status == 200).then_some(())
    })
    .await;
    eventually("the other to follow", || async {
        (who_answers(&edges[1]).await == ["primary", "primary"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_never_heard_serves_reads_and_says_why_it_refuses_writes() {
    let mut redis = Redis::start().await;
    redis.kill();
    let clusters = Clusters::start().await;
    let edge = clusters.edge(|config| shared(config, &redis.url())).await;
    assert_eq!(edge.ask(read()).await.text(), "primary");
    let refused = edge.ask(write()).await;
    let why = "it is not known which cluster has the writes: Redis does not answer";
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["message"], why);
    let field = format!("dify-edge; error=destination_unavailable; details=\"{why}\"");
    assert_eq!(refused.field("proxy-status"), Some(&*field));
    assert_eq!(clusters.primary.lines(), ["GET /console/api/apps"]);
    assert_eq!(clusters.standby.counts().requests, 0);

    let deaf = status(&edge).await;
    assert_eq!((&deaf["epoch"], &deaf["writes"]), (&json!(null), &json!(false)));
    let (code, table, _) = run(edge.admin, &["upstreams"], &[]).await;
    assert_eq!(code, 0);
    assert!(
        table.contains("\n  !! WRITES ARE REFUSED: nobody knows which cluster has them\n  !! "),
        "{table}"
    );
    let refused = steer(&edge, json!({"to": "primary"})).await;
    assert_eq!(refused.status, 503);
    assert!(
        refused
            .text()
            .contains("api: it cannot be confirmed, so nothing has changed as far as is known: "),
        "{}",
        refused.text()
    );
    for (name, value) in [("writes_open", 0.0), ("epoch", 0.0), ("confirmed_seconds", -1.0)] {
        let name = format!("dify_edge_failover_{name}");
        assert_eq!(sum(edge.admin, &name, &[]).await, value, "{name}");
    }

    redis.start_again().await;
    eventually("writes to be served once it has heard", || async {
        (edge.ask(write()).await.status == 200).then_some(())
    })
    .await;
    eventually("that to be shown", || async {
        (sum(edge.admin, "dify_edge_failover_writes_open", &[]).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shift_is_one_line_of_the_log_and_one_in_the_metrics() {
    let clusters = Clusters::start().await;
    let mut config = edge::config(&[clusters.primary.address]);
    clusters.configure(&mut config);
    let served = child::serve(config, AccessLog::Off).await;
    // The second one shifts nothing.
    for to in ["standby", "standby"] {
        let answer = Client::connect(served.admin)
            .await
            .exchange(steering(&json!({"to": to})))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let text = metrics::ask(served.admin, "/metrics").await.text();
    for (name, labels, value) in [
        ("shifts_total", &[][..], 1.0),
        ("shifts_total", &["upstream=\"api\"", "cause=\"operator\""], 1.0),
        ("epoch", &["upstream=\"api\""], 4.0),
        ("active", &["cluster=\"standby\""], 1.0),
        ("active", &["cluster=\"primary\""], 0.0),
        ("held", &["upstream=\"api\""], 1.0),
        ("writes_open", &["upstream=\"api\""], 1.0),
        ("lease_held", &["upstream=\"api\""], 1.0),
        ("healthy", &["cluster=\"primary\""], 1.0),
        ("healthy", &["cluster=\"standby\""], 1.0),
        ("owners", &["upstream=\"api\""], 0.0),
    ] {
        let name = format!("dify_edge_failover_{name}");
        assert!(text.contains(&format!("\n# HELP {name} ")), "{name}");
        assert_eq!(metrics::sum_in(&text, &name, labels), value, "{name} {labels:?}");
    }
    let confirmed = metrics::sum_in(&text, "dify_edge_failover_confirmed_seconds", &[]);
    assert!((0.0..5.0).contains(&confirmed), "{confirmed}");

    served.signal("TERM");
    let log = served.end().await.1;
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<Value> = lines.collect();
    let of = |text: &str| -> Vec<&Value> {
        let says = |line: &&Value| line["message"].as_str().is_some_and(|it| it.contains(text));
        lines.iter().filter(says).collect()
    };
    let shifts = of("failover: the writes go to the ");
    assert_eq!(shifts.len(), 1, "{log}");
    for (name, value) in [
        (
            "message",
            json!("failover: the writes go to the standby cluster now"),
        ),
        ("level", json!("WARN")),
        ("upstream", json!("api")),
        ("epoch", json!(2)),
        ("from", json!("primary")),
        ("to", json!("standby")),
        ("cause", json!("operator")),
        ("mode", json!("standby")),
        ("primary_healthy_percent", json!(100.0)),
        ("standby_healthy_percent", json!(100.0)),
    ] {
        assert_eq!(shifts[0][name], value, "{name}: {log}");
    }
    assert!(shifts[0]["by"].is_string(), "{log}");
    let kept = of("an operator has said who decides");
    assert_eq!(kept.len(), 1, "{log}");
    assert_eq!(
        (&kept[0]["epoch"], &kept[0]["mode"]),
        (&json!(4), &json!("standby"))
    );
    assert!(!log.contains(TOKEN), "{log}");
}

#[tokio::test]
async fn the_command_steers_and_the_table_shows_it() {
    let clusters = Clusters::start().await;
    let edge = clusters
        .edge(|config| config.failback.after = Span::secs(3600))
        .await;
    let token = [(VARIABLE, TOKEN)];
    for (arguments, said) in [
        (
            &["--to", "standby"][..],
            "api: writes go to the standby cluster now (epoch 2, held there until `--to auto`).\n",
        ),
        (
            &["--to", "standby", "--upstream", "api"],
            "api: writes stay at the standby cluster (epoch 4, held there until `--to auto`).\n",
        ),
        (
            &["--to", "auto"],
            "api: writes stay at the standby cluster for now (epoch 6); health decides from here on.\n",
        ),
    ] {
        let arguments = [&["failover"], arguments].concat();
        let (code, printed, complained) = run(edge.admin, &arguments, &token).await;
        assert_eq!((code, &*printed, &*complained), (0, said, ""), "{arguments:?}");
    }
    let json = ["failover", "--to", "primary", "--json"];
    let (code, printed, _) = run(edge.admin, &json, &token).await;
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((code, &printed["upstreams"][0]["epoch"]), (0, &json!(7)));

    eventually("the second beat", || async {
        status(&edge).await["healthy"].is_object().then_some(())
    })
    .await;
    let (code, table, _) = run(edge.admin, &["upstreams"], &[]).await;
    assert_eq!(code, 0);
    let standing =
        "\n  failover   writes at primary, epoch 7 (held by an operator until `failover --to auto`)\n";
    assert!(table.contains(standing), "{table}");
    assert!(
        table.contains("\n  healthy    primary 100 %, standby 100 %\n"),
        "{table}"
    );
    for (origin, cluster) in [(&clusters.primary, "primary"), (&clusters.standby, "standby")] {
        let url = format!("http://{}", origin.address);
        let row = table.lines().find(|line| line.contains(&url)).expect("its row");
        assert_eq!(row.split_whitespace().nth(1), Some(cluster), "{row}");
    }

    for (arguments, environment, code, words) in [
        (
            &["--to", "standby"][..],
            &[][..],
            1,
            "give the token with --token, --token-file or DIFY_EDGE_ADMIN_TOKEN\n",
        ),
        (
            &["--to", "standby", "--upstream", "wbe"],
            &token,
            2,
            "with one there are: api\n",
        ),
        (&["--to", "both"], &token, 2, "standby, primary, auto"),
        (&[], &token, 2, "--to <CLUSTER>"),
    ] {
        let arguments = [&["failover"], arguments].concat();
        let (got, printed, complained) = run(edge.admin, &arguments, environment).await;
        assert_eq!((got, &*printed), (code, ""), "{arguments:?} {complained}");
        assert!(complained.contains(words), "{arguments:?} {complained}");
    }
    assert_eq!(status(&edge).await["epoch"], 7);
}

//! A replica whose processor is busy gets less, whether it says so itself or somebody measures it.

use std::time::Instant;

use dify_edge::config::Config;
use dify_edge::config::scrape::ScrapeConfig;
use dify_edge::config::upstreams::BalancePolicy;
use dify_edge::types::units::Span;

use crate::support::client::post;
use crate::support::edge::{self, Running};
use crate::support::origin::{Origin, answer};
use crate::support::{eventually, metrics};

const REPORT: &str = "Endpoint-Load-Metrics";
const PATH: &str = "/v1/chat-messages";

/// A request whose time tells of the question: what this machine does beside the test makes no replica slow.
fn generation() -> Vec<u8> {
    let question = "{\"query\": \"hi\", \"user\": \"u\", \"response_mode\": \"blocking\"}";
    post(PATH, &[("Authorization", "Bearer app-1")], question)
}

fn by_health(config: &mut Config) {
    edge::api(config).balance.policy = BalancePolicy::WeightedHealth;
}

/// An origin that says with every answer how busy it is.
async fn saying(report: &'static str) -> Origin {
    Origin::start(move |_| async move { answer(200, &[(REPORT, report)], "{}") }).await
}

/// An origin with the metrics of a machine of one core that is idle for this share of the time.
async fn idle(share: f64) -> Origin {
    let start = Instant::now();
    Origin::start(move |seen| async move {
        let body = if seen.target == "/metrics" {
            let passed = start.elapsed().as_secs_f64();
            format!(
                "# TYPE node_cpu_seconds_total counter\nnode_cpu_seconds_total{{cpu=\"0\",mode=\"idle\"}} {}\n\
                 node_cpu_seconds_total{{cpu=\"0\",mode=\"user\"}} {}\n",
                1000.0 + passed * share,
                1000.0 + passed * (1.0 - share)
            )
        } else {
            "{}".to_owned()
        };
        answer(200, &[], body)
    })
    .await
}

/// The processors' part of each replica's score.
async fn parts(edge: &Running) -> [f64; 2] {
    let shown = metrics::ask(edge.admin, "/upstreams").await.json();
    [0, 1].map(|n| {
        shown[0]["replicas"][n]["score_parts"]["cpu"]
            .as_f64()
            .expect("a part of the score")
    })
}

async fn until_busy(edge: &Running) {
    eventually("the busy replica to be known", || async {
        let [busy, twin] = parts(edge).await;
        (busy < 0.4 && (0.9..1.0).contains(&twin)).then_some(())
    })
    .await;
}

/// Asks so many times; how many each origin got.
async fn shares(edge: &Running, origins: [&Origin; 2], times: usize) -> [usize; 2] {
    let got = || {
        origins.map(|origin| {
            let lines = origin.lines();
            lines.iter().filter(|line| line.ends_with(PATH)).count()
        })
    };
    let before = got();
    for _ in 0..times {
        let answer = edge.ask(generation()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.fields(REPORT), Vec::<&str>::new());
    }
    let after = got();
    [0, 1].map(|n| after[n] - before[n])
}

async fn is_worth_less(edge: &Running) {
    eventually("the busy replica to be worth less", || async {
        let shown = metrics::ask(edge.admin, "/upstreams").await.json();
        let score = |n: usize| shown[0]["replicas"][n]["score"].as_f64().expect("a score");
        (score(0) < score(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_says_it_is_busy_gets_less_and_the_client_does_not_hear_of_it() {
    let busy = saying("TEXT cpu_utilization=0.95,rps_fractional=120").await;
    let twin = saying("JSON {\"cpu_utilization\": 0.2}").await;
    let edge = edge::start(&[busy.address, twin.address], by_health).await;
    shares(&edge, [&busy, &twin], 10).await;
    until_busy(&edge).await;
    is_worth_less(&edge).await;
    let [to_busy, to_twin] = shares(&edge, [&busy, &twin], 100).await;
    assert!(to_busy * 4 < to_twin, "{to_busy} and {to_twin}");
}

#[tokio::test]
async fn a_replica_that_is_measured_to_be_busy_gets_less_until_it_is_no_longer_measured() {
    let (busy, twin) = (idle(0.05).await, idle(0.7).await);
    let edge = edge::start(&[busy.address, twin.address], |config| {
        by_health(config);
        edge::api(config).scrape = Some(ScrapeConfig {
            url: "http://{host}:{port}/metrics".into(),
            interval: Span::millis(400),
            cpu: "1 - avg(rate(node_cpu_seconds_total{mode=\"idle\"}))"
                .parse()
                .ok(),
            ..ScrapeConfig::default()
        });
    })
    .await;
    until_busy(&edge).await;
    is_worth_less(&edge).await;
    let [to_busy, to_twin] = shares(&edge, [&busy, &twin], 100).await;
    assert!(to_busy * 4 < to_twin, "{to_busy} and {to_twin}");

    busy.stop();
    eventually("what was measured to be forgotten", || async {
        (parts(&edge).await[0] == 1.0).then_some(())
    })
    .await;
    let scrapes = async |result: &str, origin: &Origin| {
        let labels = [
            format!("result=\"{result}\""),
            format!("replica=\"{}\"", origin.address),
        ];
        let labels = labels.each_ref().map(String::as_str);
        metrics::sum(edge.admin, "dify_edge_upstream_scrapes_total", &labels).await
    };
    eventually("the failure to be counted", || async {
        (scrapes("failed", &busy).await > 0.0).then_some(())
    })
    .await;
    assert!(scrapes("ok", &busy).await >= 2.0);
    assert_eq!(scrapes("failed", &twin).await, 0.0);
    busy.go_on();
    until_busy(&edge).await;
}

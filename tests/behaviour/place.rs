//! Requests go where zones and labels say, and elsewhere when they cannot.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dify_edge::config::Config;
use dify_edge::config::affinity::{AffinityConfig, Operator, Preference, Term};
use dify_edge::types::outcome::RouteClass;
use dify_edge::types::units::Span;

use crate::support::client::{get, post, request};
use crate::support::edge::{self, Running};
use crate::support::metrics;
use crate::support::origin::{Origin, json};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

async fn origins<const N: usize>(names: [&'static str; N]) -> Vec<Origin> {
    let mut origins = Vec::new();
    for name in names {
        origins.push(Origin::start(move |_| async move { json(200, name) }).await);
    }
    origins
}

fn addresses(origins: &[Origin]) -> Vec<SocketAddr> {
    origins.iter().map(|origin| origin.address).collect()
}

fn upload() -> Vec<u8> {
    request("POST", "/v1/files/upload", &[KEY], b"content")
}

fn generation() -> Vec<u8> {
    post(
        "/v1/chat-messages",
        &[KEY],
        "{\"query\": \"hi\", \"user\": \"u\", \"response_mode\": \"blocking\"}",
    )
}

/// A read that is not kept.
fn read() -> Vec<u8> {
    get("/console/api/apps", &[("Cookie", "access_token=a")])
}

/// Sends `request` so many times; who answered how often.
async fn who_answers(edge: &Running, request: fn() -> Vec<u8>, times: usize) -> BTreeMap<String, usize> {
    let mut client = edge.client().await;
    let mut names = BTreeMap::new();
    for _ in 0..times {
        let answer = client.exchange(request()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *names.entry(answer.text()).or_default() += 1;
    }
    names
}

fn label(config: &mut Config, replica: usize, key: &str, value: &str) {
    let labels = &mut edge::api(config).replicas[replica].labels;
    labels.insert(key.to_owned(), value.to_owned());
}

fn require_ssd(config: &mut Config) {
    let ssd = Term {
        key: "disktype".into(),
        operator: Operator::In,
        values: vec!["ssd".into()],
    };
    let rules = AffinityConfig {
        require: vec![ssd],
        ..AffinityConfig::default()
    };
    edge::api(config).affinity.insert(RouteClass::Upload, rules);
}

#[tokio::test]
async fn uploads_go_to_where_the_fast_disks_are_and_all_else_goes_everywhere() {
    let origins = origins(["hdd", "ssd", "none"]).await;
    let edge = edge::start(&addresses(&origins), |config| {
        require_ssd(config);
        label(config, 0, "disktype", "hdd");
        label(config, 1, "disktype", "ssd");
    })
    .await;
    assert_eq!(
        who_answers(&edge, upload, 30).await,
        BTreeMap::from([("ssd".to_owned(), 30)])
    );
    assert_eq!(who_answers(&edge, read, 30).await.len(), 3);
}

#[tokio::test]
async fn an_upload_that_may_go_nowhere_is_refused_at_once_with_the_reason() {
    let origins = origins(["hdd"]).await;
    let edge = edge::start(&addresses(&origins), |config| {
        require_ssd(config);
        label(config, 0, "disktype", "hdd");
    })
    .await;
    let refused = edge.ask(upload()).await;
    let body = refused.json();
    assert_eq!((refused.status, &body["status"]), (503, &503.into()));
    assert_eq!(body["code"], "service_unavailable");
    assert_eq!(
        body["message"],
        "no replica of the upstream matches what `upload` requests require: disktype In [ssd]"
    );
    assert_eq!(
        refused.field("proxy-status"),
        Some("dify-edge; error=destination_unavailable")
    );
    assert_eq!(origins[0].counts().heads, 0);
    assert_eq!(edge.ask(read()).await.status, 200);
}

#[tokio::test]
async fn a_preference_draws_as_much_as_it_weighs() {
    let origins = origins(["gpu", "none"]).await;
    let edge = edge::start(&addresses(&origins), |config| {
        label(config, 0, "gpu", "true");
        let gpu = Preference {
            weight: 50,
            key: "gpu".into(),
            operator: Operator::Exists,
            values: Vec::new(),
        };
        let rules = AffinityConfig {
            prefer: vec![gpu],
            ..AffinityConfig::default()
        };
        edge::api(config).affinity.insert(RouteClass::Generation, rules);
    })
    .await;
    // Half of them insist; the others take turns: three quarters, to within six standard deviations.
    let gpu = who_answers(&edge, generation, 400).await["gpu"];
    assert!((240..=360).contains(&gpu), "{gpu}");
    assert_eq!(who_answers(&edge, read, 20).await["gpu"], 10);
}

/// Two replicas in the own zone and two in another.
async fn two_zones(origins: &[Origin]) -> Running {
    edge::start(&addresses(origins), |config| {
        config.zone = Some("near".into());
        let api = edge::api(config);
        for (replica, zone) in api.replicas.iter_mut().zip(["near", "near", "far", "far"]) {
            replica.zone = Some(zone.into());
        }
        api.health_check.interval = Span::millis(50);
        api.health_check.timeout = Span::millis(200);
    })
    .await
}

#[tokio::test]
async fn the_own_zone_takes_all_while_it_is_well_less_when_it_is_hurt_and_nothing_when_it_is_gone() {
    let origins = origins(["near", "near", "far", "far"]).await;
    let edge = two_zones(&origins).await;
    assert_eq!(
        who_answers(&edge, read, 60).await,
        BTreeMap::from([("near".to_owned(), 60)])
    );
    let near = [origins[0].counts().requests, origins[1].counts().requests];

    origins[0].stop();
    metrics::until_healthy(edge.admin, 3.0).await;
    let names = who_answers(&edge, read, 700).await;
    // 1 - 0.5 / 0.7, to within five standard deviations.
    assert!((140..=260).contains(&names["far"]), "{names:?}");

    origins[1].stop();
    metrics::until_healthy(edge.admin, 2.0).await;
    assert_eq!(
        who_answers(&edge, read, 60).await,
        BTreeMap::from([("far".to_owned(), 60)])
    );

    origins[0].go_on();
    origins[1].go_on();
    metrics::until_healthy(edge.admin, 4.0).await;
    assert_eq!(
        who_answers(&edge, read, 60).await,
        BTreeMap::from([("near".to_owned(), 60)])
    );
    assert!(near.iter().all(|requests| *requests >= 30), "{near:?}");
}

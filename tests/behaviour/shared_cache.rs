//! What one instance fetched serves the others, and what one ends ends everywhere.

use std::sync::Arc;

use dify_edge::types::units::Span;
use tokio::sync::Notify;

use crate::support::client::{Client, request};
use crate::support::fleet::{Fleet, is_l2, of, parameters, purge, stats};
use crate::support::origin::{Action, Origin, json};
use crate::support::redis::Redis;
use crate::support::redis::cluster::Cluster;
use crate::support::redis::sentinel::Sentinels;
use crate::support::{edge, eventually, fleet};

/// Asks an instance for what another has fetched until it comes from Redis, where it is put after it was answered.
async fn comes_from_redis(fleet: &Fleet, edge: usize, who: &str) {
    eventually("an answer from Redis", || async {
        let answer = fleet.read(edge, who).await;
        // What was fetched too early is in memory now.
        purge(&fleet.edges[edge]).await;
        let found = is_l2(&answer);
        if !found {
            fleet.read(0, who).await;
        }
        found.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_fetched_serves_the_others_and_one_that_starts_later() {
    let redis = Redis::start().await;
    let mut fleet = Fleet::start(3, &redis.url()).await;
    let first = fleet.read(0, "app-1").await;
    assert!(first.is_stored(), "{}", first.cache_status());
    eventually("the answer to be in Redis", || async {
        (redis.keys("dify-edge:*v").await.len() == 1).then_some(())
    })
    .await;
    for edge in [1, 2] {
        let answer = fleet.read(edge, "app-1").await;
        assert!(is_l2(&answer), "{}", answer.cache_status());
        assert_eq!(answer.body, first.body);
        let again = fleet.read(edge, "app-1").await;
        assert!(
            again.is_hit() && !is_l2(&again),
            "it is in memory now: {}",
            again.cache_status()
        );
    }
    fleet.one_more(|_| {}).await;
    let answer = fleet.read(3, "app-1").await;
    assert!(
        is_l2(&answer),
        "a new instance starts warm: {}",
        answer.cache_status()
    );
    assert_eq!(fleet.origin.counts().requests, 1);
    let other = fleet.read(1, "app-2").await;
    assert!(
        !other.is_hit(),
        "another caller's answer is another: {}",
        other.cache_status()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_through_one_instance_ends_what_the_others_have() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(3, &redis.url()).await;
    for round in 0..10 {
        for edge in 0..3 {
            fleet.sees(edge, "app-1", round).await;
            assert!(fleet.read(edge, "app-1").await.is_hit());
        }
        let version = fleet.edit(round % 3).await;
        assert_eq!(
            of(&fleet.read(round % 3, "app-1").await),
            version,
            "its own write at once"
        );
        for edge in 0..3 {
            fleet.sees(edge, "app-1", version).await;
        }
    }
    for edge in &fleet.edges {
        let stats = stats(edge).await;
        assert_eq!(
            (&stats["gaps"], &stats["unreadable"]),
            (&0.into(), &0.into()),
            "{stats}"
        );
        assert!(stats["invalidations_heard"].as_u64() >= Some(6), "{stats}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_reaches_all_instances_and_redis() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    fleet.read(0, "app-1").await;
    fleet.read(1, "app-1").await;
    let fetched = fleet.origin.counts().requests;
    let answer = purge(&fleet.edges[0]).await;
    assert_eq!(answer.json()["instances"], "told", "{}", answer.text());
    eventually("the other instance to fetch anew", || async {
        fleet.read(1, "app-1").await;
        (fleet.origin.counts().requests > fetched).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_ends_the_answers_of_the_app_everywhere() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    for edge in 0..2 {
        fleet.read(edge, "app-1").await;
        assert!(fleet.read(edge, "app-1").await.is_hit());
    }
    let target = "/console/api/apps/5f0e7a3c-0000-4000-8000-00000000000a/api-keys/5f0e7a3c-0000-4000-8000-00000000000b";
    let delete = request("DELETE", target, &[("Authorization", "Bearer someone")], b"");
    assert_eq!(fleet.edges[0].ask(delete).await.status, 200);
    assert_eq!(of(&fleet.read(0, "app-1").await), 1);
    fleet.sees(1, "app-1", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_at_four_instances_are_one_request_upstream() {
    const CLIENTS: usize = 500;
    let redis = Redis::start().await;
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let origin = Origin::start(move |_| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            json(200, "{\"version\": 0}")
        }
    })
    .await;
    let mut edges = Vec::new();
    for _ in 0..4 {
        let edge = edge::start(&[origin.address], |config| {
            fleet::shared(config, &redis.url());
            config.cache.redis.lease = Span::secs(8);
            // Two thousand look-ups at once, without optimisation.
            config.cache.redis.timeout = Span::secs(5);
        })
        .await;
        fleet::uses_redis(&edge).await;
        edges.push(edge);
    }
    let mut clients = Vec::new();
    for number in 0..4 * CLIENTS {
        let mut client = edges[number % 4].client().await;
        client.send(parameters("app-1")).await;
        clients.push(client);
    }
    origin
        .until("the one request", |counts| counts.requests == 1)
        .await;
    go_on.notify_one();
    for mut client in clients {
        let answer = client.response("GET").await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, "{\"version\": 0}".to_owned())
        );
    }
    assert_eq!(origin.counts().requests, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hangs_costs_the_others_one_lease() {
    let redis = Redis::start().await;
    let stuck = Arc::new(Notify::new());
    let held = Origin::start(move |_| {
        let wait = Action::Wait(stuck.clone());
        async move { vec![wait] }
    })
    .await;
    let lease = |config: &mut dify_edge::config::Config| {
        fleet::shared(config, &redis.url());
        config.cache.redis.lease = Span::millis(300);
    };
    let hanging = edge::start(&[held.address], lease).await;
    fleet::uses_redis(&hanging).await;
    let fleet = Fleet::start_with(1, &redis.url(), |config| {
        config.cache.redis.lease = Span::millis(300)
    })
    .await;
    let mut client = hanging.client().await;
    client.send(parameters("app-1")).await;
    held.until("the leader to ask", |counts| counts.requests == 1)
        .await;
    let answer = fleet.read(0, "app-1").await;
    assert!(answer.is_stored(), "{}", answer.cache_status());
    assert_eq!(fleet.origin.counts().requests, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_local_tier_redis_alone_answers() {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(2, &redis.url(), |config| config.cache.enable_local = false).await;
    fleet.read(0, "app-1").await;
    eventually("the answer to be in Redis", || async {
        is_l2(&fleet.read(0, "app-1").await).then_some(())
    })
    .await;
    for _ in 0..3 {
        assert!(is_l2(&fleet.read(1, "app-1").await));
    }
    let version = fleet.edit(0).await;
    assert_eq!(of(&fleet.read(0, "app-1").await), version);
    assert_eq!(
        of(&fleet.read(1, "app-1").await),
        version,
        "it was told before the edit was answered"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_raw_of_a_caller_is_in_redis() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(1, &redis.url()).await;
    fleet.read(0, "app-a-very-secret-key").await;
    eventually("the answer to be in Redis", || async {
        (!redis.keys("*v").await.is_empty()).then_some(())
    })
    .await;
    for key in redis.keys("*").await {
        assert!(!key.contains("secret"), "{key}");
        if key.ends_with('v') {
            assert!(!redis.ask(&["GET", &key]).await.text().contains("secret"));
            let life: u64 = redis
                .ask(&["PTTL", &key])
                .await
                .text()
                .parse()
                .expect("a lifetime");
            // A minute of freshness and an hour beyond, cut to `ttl_seconds`.
            assert!((3_500_000..=3_600_000).contains(&life), "{life}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_with_another_secret_is_not_served() {
    let redis = Redis::start().await;
    let secret = |config: &mut dify_edge::config::Config| {
        config.cache.redis.secret = Some("a secret of sixteen or more".to_owned());
    };
    let ours = Fleet::start_with(2, &redis.url(), secret).await;
    ours.read(0, "app-1").await;
    eventually("the answer to be in Redis", || async {
        (redis.keys("*v").await.len() == 1).then_some(())
    })
    .await;
    assert!(is_l2(&ours.read(1, "app-1").await), "the same secret");
    let theirs = Fleet::deaf(1, &redis.url(), |_| {}).await;
    eventually("Redis to be used", || async {
        (stats(&theirs.edges[0]).await["open"] == true).then_some(())
    })
    .await;
    let answer = theirs.read(0, "app-1").await;
    assert!(!answer.is_hit(), "{}", answer.cache_status());
    assert!(stats(&theirs.edges[0]).await["unreadable"].as_u64() >= Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_a_user_and_a_database_are_taken_from_the_url() {
    let redis = Redis::start_with_password("hush").await;
    let rule = [
        "ACL",
        "SETUSER",
        "edge",
        "on",
        ">word",
        "~dify-edge:*",
        "&dify-edge:*",
        "+@all",
    ];
    assert_eq!(redis.ask(&rule).await.text(), "OK");
    for url in [
        format!("redis://:hush@{}", redis.address),
        format!("redis://edge:word@{}/3", redis.address),
    ] {
        let fleet = Fleet::start(2, &url).await;
        fleet.read(0, "app-1").await;
        comes_from_redis(&fleet, 1, "app-1").await;
    }
    let keys = redis.ask(&["INFO", "keyspace"]).await;
    assert!(keys.text().contains("db3:"), "{}", keys.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_who_has_a_certificate_that_is_trusted() {
    let (redis, ca) = Redis::start_with_tls().await;
    let trusting = |config: &mut dify_edge::config::Config| config.cache.redis.ca = Some(ca.clone());
    let fleet = Fleet::start_with(2, &redis.tls_url(), trusting).await;
    fleet.read(0, "app-1").await;
    comes_from_redis(&fleet, 1, "app-1").await;

    let wary = Fleet::deaf(1, &redis.tls_url(), |_| {}).await;
    wary.read(0, "app-1").await;
    assert_eq!(
        stats(&wary.edges[0]).await["open"],
        false,
        "nobody vouches for that certificate"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_shared_as_one_server_is() {
    let cluster = Cluster::start(false).await;
    let fleet = Fleet::start(2, &cluster.url()).await;
    for number in 0..12 {
        let who = format!("app-{number}");
        fleet.read(0, &who).await;
    }
    eventually("the answers to be in Redis", || async {
        let mut found = 0;
        for node in &cluster.nodes {
            found += node.keys("dify-edge:*v").await.len();
        }
        (found == 12).then_some(())
    })
    .await;
    for number in 0..12 {
        let answer = fleet.read(1, &format!("app-{number}")).await;
        assert!(is_l2(&answer), "{}", answer.cache_status());
    }
    let version = fleet.edit(1).await;
    fleet.sees(0, "app-1", version).await;
    let mut client = Client::connect(fleet.edges[0].address).await;
    assert_eq!(client.exchange(parameters("app-2")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_are_asked_for_the_master() {
    let sentinels = Sentinels::start().await;
    let fleet = Fleet::start(2, &sentinels.url()).await;
    fleet.read(0, "app-1").await;
    comes_from_redis(&fleet, 1, "app-1").await;
    assert!(!sentinels.servers[0].keys("dify-edge:*").await.is_empty());
}

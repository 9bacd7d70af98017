//! Whatever happens to Redis: no client notices more than a slower miss, and it is used again by itself.
//!
//! While a fault lasts, clients ask without pause for what is in memory and for what nobody has.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::support::eventually;
use crate::support::fleet::{Fleet, is_l2, of, purge, redis_is, stats, uses_redis};
use crate::support::redis::Redis;
use crate::support::redis::cluster::Cluster;
use crate::support::redis::sentinel::Sentinels;
use crate::support::redis::slow::Slow;

/// Failures in a row after which Redis is left out.
const FAILURES: u64 = 5;

/// Asks both instances while `fault` lasts; every answer has to be one. Tells how many there were.
async fn asked_during(fleet: &Fleet, what: &str, fault: impl Future<Output = ()>) -> usize {
    let asked = Cell::new(0);
    let asking = async {
        loop {
            for edge in 0..fleet.edges.len() {
                fleet.read(edge, "app-hot").await;
                let number = asked.get();
                fleet.read(edge, &format!("app-{what}-{number}")).await;
                asked.set(number + 1);
            }
        }
    };
    tokio::select! {
        () = fault => {}
        () = asking => {}
    }
    asked.get()
}

/// Waits until something is shared again: what the first instance fetched comes from Redis at the second.
async fn shares_again(fleet: &Fleet, what: &str) {
    for edge in &fleet.edges {
        uses_redis(edge).await;
    }
    let number = Cell::new(0);
    eventually("answers to be shared again", || async {
        number.set(number.get() + 1);
        let who = format!("app-{what}-again-{}", number.get());
        fleet.read(0, &who).await;
        // It is put there after it was answered.
        fleet.read(0, &who).await;
        is_l2(&fleet.read(1, &who).await).then_some(())
    })
    .await;
}

/// What a write through one instance changed, the other gives, too.
async fn agree(fleet: &Fleet) {
    let version = fleet.edit(0).await;
    assert_eq!(of(&fleet.read(0, "app-hot").await), version);
    fleet.sees(1, "app-hot", version).await;
}

/// Look-ups that took too long so far.
async fn too_slow(fleet: &Fleet, edge: usize) -> u64 {
    stats(&fleet.edges[edge]).await["deadline_exceeded"]
        .as_u64()
        .expect("a number")
}

/// A while in which a fault goes on.
async fn a_while(length: Duration) {
    let _ = timeout(length, std::future::pending::<()>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_is_missed_by_no_client_and_used_again_when_it_is_back_empty() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    fleet.read(0, "app-hot").await;
    redis.kill();
    let out = async {
        for edge in &fleet.edges {
            redis_is(edge, false).await;
        }
    };
    assert!(asked_during(&fleet, "down", out).await > 0);
    // Writes are answered, and the one who took it never goes back behind it.
    let version = fleet.edit(0).await;
    assert_eq!(of(&fleet.read(0, "app-hot").await), version);
    let back = async {
        redis.start_again().await;
        for edge in &fleet.edges {
            uses_redis(edge).await;
        }
    };
    asked_during(&fleet, "back", back).await;
    fleet.sees(1, "app-hot", version).await;
    shares_again(&fleet, "killed").await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_for_ten_seconds_costs_a_few_look_ups_their_deadline() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    fleet.read(0, "app-hot").await;
    redis.stop();
    let out = async {
        for edge in &fleet.edges {
            redis_is(edge, false).await;
        }
    };
    asked_during(&fleet, "hanging", out).await;
    let before = [too_slow(&fleet, 0).await, too_slow(&fleet, 1).await];
    let asked = asked_during(&fleet, "hung", a_while(Duration::from_secs(9))).await;
    assert!(asked > 20, "{asked} requests in nine seconds");
    for (edge, before) in before.into_iter().enumerate() {
        let slow = too_slow(&fleet, edge).await;
        assert_eq!(slow, before, "nobody waits for a tier that is left out");
        // The look-ups until then, one after the other, and the writes of what was fetched meanwhile.
        assert!(slow <= 2 * FAILURES, "{slow} waited in vain");
    }
    redis.go_on();
    shares_again(&fleet, "hung").await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_kept_while_it_was_deaf_is_looked_at_again() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    for edge in 0..2 {
        fleet.read(edge, "app-hot").await;
        assert!(fleet.read(edge, "app-hot").await.is_hit());
    }
    redis.kill();
    for edge in &fleet.edges {
        redis_is(edge, false).await;
    }
    let version = fleet.edit(0).await;
    redis.start_again().await;
    for edge in &fleet.edges {
        uses_redis(edge).await;
    }
    let seen = of(&fleet.read(1, "app-hot").await);
    assert_eq!(seen, version, "nobody told the second instance, and it asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_make_another_the_master_are_followed_under_load() {
    let mut sentinels = Sentinels::start().await;
    let fleet = Fleet::start(2, &sentinels.url()).await;
    fleet.read(0, "app-hot").await;
    sentinels.servers[0].kill();
    let over = async {
        sentinels.taken_over().await;
        for edge in &fleet.edges {
            uses_redis(edge).await;
        }
    };
    asked_during(&fleet, "failover", over).await;
    shares_again(&fleet, "failover").await;
    agree(&fleet).await;
    assert!(
        !sentinels.servers[1].keys("dify-edge:*v").await.is_empty(),
        "the new master is used"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_a_master_is_used_again_when_its_replica_has_taken_over() {
    let mut cluster = Cluster::start(true).await;
    let fleet = Fleet::start(2, &cluster.url()).await;
    fleet.read(0, "app-hot").await;
    let lost = cluster.owner("dify-edge:tags").await;
    cluster.nodes[lost].kill();
    let over = async {
        cluster.taken_over(lost).await;
        for edge in &fleet.edges {
            uses_redis(edge).await;
        }
    };
    asked_during(&fleet, "cluster", over).await;
    shares_again(&fleet, "cluster").await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_evicts_costs_misses_only() {
    let redis = Redis::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"]).await;
    let fleet = Fleet::start(2, &redis.url()).await;
    let filling = async {
        let large = "x".repeat(60_000);
        for number in 0..400 {
            redis.ask(&["SET", &format!("other:{number}"), &large]).await;
        }
    };
    asked_during(&fleet, "evicting", filling).await;
    let evicted = redis.ask(&["INFO", "stats"]).await;
    assert!(!evicted.text().contains("evicted_keys:0"), "{}", evicted.text());
    // The versions themselves are lost, too.
    redis.ask(&["DEL", "dify-edge:tags"]).await;
    agree(&fleet).await;
    asked_during(&fleet, "evicted", a_while(Duration::from_millis(300))).await;
    for edge in &fleet.edges {
        let stats = stats(edge).await;
        assert_eq!(stats["unreadable"], 0, "{stats}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_versions_are_made_anew() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    redis.ask(&["DEL", "dify-edge:tags"]).await;
    shares_again(&fleet, "lost").await;
    redis.ask(&["FLUSHALL"]).await;
    shares_again(&fleet, "flushed").await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_leaves_every_instance_to_itself() {
    let redis = Redis::start_with_password("hush").await;
    let fleet = Fleet::deaf(2, &format!("redis://:wrong@{}", redis.address), |_| {}).await;
    asked_during(&fleet, "locked-out", a_while(Duration::from_millis(500))).await;
    let answer = fleet.read(0, "app-hot").await;
    assert!(
        answer.is_hit(),
        "memory works for a while: {}",
        answer.cache_status()
    );
    assert_eq!(stats(&fleet.edges[0]).await["open"], false);
    assert_eq!(of(&fleet.read(0, "app-hot").await), 0);
    let version = fleet.edit(0).await;
    assert_eq!(of(&fleet.read(0, "app-hot").await), version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_redis_is_a_miss_that_is_counted() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    fleet.read(0, "app-1").await;
    eventually("the answer to be in Redis", || async {
        (redis.keys("dify-edge:*v").await.len() == 1).then_some(())
    })
    .await;
    let key = redis.keys("dify-edge:*v").await.remove(0);
    for (number, garbage) in ["", "x", "\u{1}", "\u{7f}garbage", &"\u{1}".repeat(400)]
        .iter()
        .enumerate()
    {
        redis.ask(&["SET", &key, garbage]).await;
        purge(&fleet.edges[1]).await;
        redis.ask(&["SET", &key, garbage]).await;
        let answer = fleet.read(1, "app-1").await;
        assert!(!answer.is_hit(), "{number}: {}", answer.cache_status());
    }
    let stats = stats(&fleet.edges[1]).await;
    assert!(stats["unreadable"].as_u64() >= Some(5), "{stats}");
    // Of another kind than a value.
    redis.ask(&["DEL", &key]).await;
    redis.ask(&["LPUSH", &key, "x"]).await;
    purge(&fleet.edges[1]).await;
    assert!(!fleet.read(1, "app-1").await.is_hit());
    // Messages that nobody sent.
    redis.ask(&["PUBLISH", "dify-edge:board", "hello"]).await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_redis_is_left_out_and_still_tells_what_ends() {
    let redis = Redis::start().await;
    let road = Slow::to(redis.address).await;
    let fleet = Fleet::start_with(2, &format!("redis://{}", road.address), |config| {
        config.cache.redis.timeout = dify_edge::types::units::Span::millis(50);
    })
    .await;
    fleet.read(0, "app-hot").await;
    road.delay(Duration::from_millis(200));
    let out = async {
        for edge in &fleet.edges {
            eventually("Redis to be left out", || async {
                (stats(edge).await["open"] == false).then_some(())
            })
            .await;
        }
    };
    asked_during(&fleet, "slow", out).await;
    let before = [too_slow(&fleet, 0).await, too_slow(&fleet, 1).await];
    asked_during(&fleet, "slowly", a_while(Duration::from_secs(2))).await;
    for (edge, before) in before.into_iter().enumerate() {
        assert_eq!(too_slow(&fleet, edge).await, before, "nobody waits for it");
        assert_eq!(
            stats(&fleet.edges[edge]).await["heard"],
            true,
            "beats come late, but they come"
        );
    }
    agree(&fleet).await;
    road.delay(Duration::ZERO);
    shares_again(&fleet, "slow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_road_on_which_nothing_comes_through_is_given_up_for_another() {
    let redis = Redis::start().await;
    let road = Slow::to(redis.address).await;
    let fleet = Fleet::start(2, &format!("redis://{}", road.address)).await;
    road.hold();
    let out = async {
        for edge in &fleet.edges {
            redis_is(edge, false).await;
        }
    };
    asked_during(&fleet, "held", out).await;
    road.delay(Duration::ZERO);
    shares_again(&fleet, "held").await;
    agree(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_cost_no_fetch() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &redis.url()).await;
    for edge in 0..2 {
        fleet.read(edge, "app-1").await;
    }
    eventually("the answer to be in Redis", || async {
        (redis.keys("dify-edge:*v").await.len() == 1).then_some(())
    })
    .await;
    let asked = fleet.origin.counts().requests;
    for kind in ["pubsub", "normal"] {
        redis.ask(&["CLIENT", "KILL", "TYPE", kind]).await;
        for edge in &fleet.edges {
            eventually("the loss to be noticed", || async {
                (stats(edge).await["heard"] == false).then_some(())
            })
            .await;
            uses_redis(edge).await;
        }
        for edge in 0..2 {
            let answer = fleet.read(edge, "app-1").await;
            assert!(
                is_l2(&answer),
                "asked whether it is still true: {}",
                answer.cache_status()
            );
            assert!(fleet.read(edge, "app-1").await.is_hit());
        }
    }
    assert_eq!(fleet.origin.counts().requests, asked);
}

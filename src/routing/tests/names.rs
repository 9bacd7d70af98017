//! Names that move, vanish or do not answer.
//!
//! A replica keeps its last good addresses, and a connect failure makes routing ask again at once, once for
//! all who met it.

use super::*;

fn named() -> UpstreamConfig {
    UpstreamConfig {
        replicas: vec![replica("http://api:5001")],
        ..config(1, 0, 10, 10)
    }
}

fn addresses(last: u8) -> Vec<SocketAddr> {
    vec![SocketAddr::from(([10, 0, 0, last], 5001))]
}

#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_before_its_first_request() {
    let rig = Rig::new(named());
    *rig.names.answer.lock() = Some(addresses(1));
    rig.get().await.unwrap();
    assert_eq!(rig.status().replicas[0].addresses, addresses(1));
    rig.get().await.unwrap();
    assert_eq!(rig.names.lookups.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_container_is_found_within_seconds_and_a_dead_name_service_loses_none() {
    let rig = Rig::new(UpstreamConfig {
        health_check: crate::config::upstreams::HealthCheckConfig {
            interval: Span::secs(3600),
            ..Default::default()
        },
        ..named()
    });
    *rig.names.answer.lock() = Some(addresses(1));
    rig.start();
    sleep(Duration::from_secs(1)).await;
    *rig.names.answer.lock() = Some(addresses(2));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.status().replicas[0].addresses, addresses(2));
    for nothing in [None, Some(vec![])] {
        *rig.names.answer.lock() = nothing;
        sleep(Duration::from_secs(10)).await;
        assert_eq!(rig.status().replicas[0].addresses, addresses(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_failure_looks_the_name_up_at_once() {
    let rig = Rig::new(named());
    *rig.names.answer.lock() = Some(addresses(1));
    rig.get().await.unwrap();
    *rig.names.answer.lock() = Some(addresses(2));
    rig.fake.mood(0, Mood::Refuses);
    sleep(Duration::from_millis(1)).await;
    rig.get().await.unwrap_err();
    assert_eq!(rig.status().replicas[0].addresses, addresses(2));
}

#[tokio::test(start_paused = true)]
async fn many_connect_failures_share_one_look_up() {
    let rig = Rig::new(named());
    *rig.names.answer.lock() = Some(addresses(1));
    rig.get().await.unwrap();
    rig.fake.mood(0, Mood::Refuses);
    sleep(Duration::from_millis(1)).await;
    let before = rig.names.lookups.load(Ordering::SeqCst);
    futures_util::future::join_all((0..8).map(|_| rig.get())).await;
    assert_eq!(rig.names.lookups.load(Ordering::SeqCst) - before, 1);
}

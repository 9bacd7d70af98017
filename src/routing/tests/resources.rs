//! What is measured of replicas, and that their scores say so.

use std::net::{TcpListener, TcpStream};

use super::*;

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn the_round_trip_of_the_connections_to_a_replica_counts_as_long_as_there_are_any() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = config(2, 0, 10, 10);
    config.replicas[0] = replica(&format!("http://{address}"));
    let rig = Rig::new(config);
    let connection = TcpStream::connect(address).unwrap();
    rig.start();
    sleep(Duration::from_secs(1)).await;
    let [near, unknown] = rig.status().replicas.try_into().unwrap();
    // Some microseconds: next to nothing, but known.
    assert!((0.99..1.0).contains(&near.score_parts.network), "{near:?}");
    assert_eq!(near.score_parts.retransmits, 1.0);
    assert_eq!(unknown.score_parts.network, 1.0);
    drop(connection);
    sleep(Duration::from_secs(21)).await;
    assert_eq!(rig.status().replicas[0].score_parts.network, 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_says_of_its_load_counts_with_requests_and_probes_and_goes_no_further() {
    let rig = Rig::new(config(2, 0, 10, 10));
    let part = || rig.status().replicas[0].score_parts.cpu;
    rig.fake.mood(0, Mood::Reports("TEXT cpu_utilization=0.95"));
    let answer = rig.send("/", &[1], None).await.unwrap();
    assert!(answer.headers().is_empty(), "{answer:?}");
    assert!(part() < 0.4);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(part(), 1.0, "that was long ago");
    rig.start();
    sleep(Duration::from_secs(6)).await;
    assert!(part() < 0.4, "a probe heard it");
    assert_eq!(rig.status().replicas[1].score_parts.cpu, 1.0);
    rig.fake.mood(0, Mood::Reports("JSON {\"cpu_utilization\": 0.1}"));
    sleep(Duration::from_secs(6)).await;
    assert!(part() > 0.99);
}

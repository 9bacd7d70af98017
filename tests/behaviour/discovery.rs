//! Replicas that a DNS server names come, serve, are drained and go, while requests are answered.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dify_edge::config::upstreams::DiscoveryConfig;
use tokio::sync::Notify;

use crate::support::client::get;
use crate::support::dns::{Dns, Records};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Options, Origin, chunk, events, json, last_chunk};
use crate::support::{eventually, metrics};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const THREE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn read() -> Vec<u8> {
    get("/console/api/apps", &[("Cookie", "access_token=a")])
}

/// Origins that say their address, all on one port.
async fn origins(addresses: &[Ipv4Addr]) -> (u16, Vec<Origin>) {
    let mut port = 0;
    let mut origins = Vec::new();
    for address in addresses {
        let at = SocketAddr::from((*address, port));
        let origin = Origin::start_at(at, Options::default(), move |_| async move {
            json(200, address_text(at))
        })
        .await;
        port = origin.address.port();
        origins.push(origin);
    }
    (port, origins)
}

fn address_text(at: SocketAddr) -> String {
    format!("\"{}\"", at.ip())
}

/// The proxy with no replicas but those that `dns` names.
async fn edge(dns: &Dns, change: impl FnOnce(&mut DiscoveryConfig)) -> Running {
    edge::start(&[], |config| {
        let mut discovery = DiscoveryConfig {
            server: Some(dns.address),
            ..DiscoveryConfig::default()
        };
        change(&mut discovery);
        edge::api(config).discovery = Some(discovery);
    })
    .await
}

/// Who answers so many requests.
async fn who(edge: &Running, times: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for _ in 0..times {
        let answer = edge.ask(read()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        names.insert(answer.text());
    }
    names
}

async fn until(edge: &Running, addresses: &[Ipv4Addr]) {
    let expected: BTreeSet<_> = addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
    eventually("the named replicas alone to serve", || async {
        (who(edge, 6).await == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_address_of_a_name_serves_and_the_next_reading_counts() {
    let (port, _origins) = origins(&[ONE, TWO, THREE]).await;
    let dns = Dns::start().await;
    dns.say("api-headless", Records::Addresses(vec![ONE, TWO]));
    let edge = edge(&dns, |discovery| {
        discovery.dns = Some(format!("api-headless:{port}"))
    })
    .await;
    until(&edge, &[ONE, TWO]).await;
    dns.say("api-headless", Records::Addresses(vec![TWO, THREE]));
    until(&edge, &[TWO, THREE]).await;
    // The series of the one that went are gone, too.
    eventually("its series to end", || async {
        let text = metrics::ask(edge.admin, "/metrics").await.text();
        (!text.contains(&format!("127.0.0.1:{port}\""))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dns_server_that_refuses_or_names_nobody_takes_no_replica_away() {
    let (port, _origins) = origins(&[ONE]).await;
    let dns = Dns::start().await;
    dns.say("api", Records::Addresses(vec![ONE]));
    let edge = edge(&dns, |discovery| discovery.dns = Some(format!("api:{port}"))).await;
    until(&edge, &[ONE]).await;
    for nobody in [true, false] {
        dns.refuse(nobody);
        dns.say("api", Records::Addresses(Vec::new()));
        let before = dns.questions();
        eventually("it to be asked twice more", || async {
            (dns.questions() >= before + 3).then_some(())
        })
        .await;
        until(&edge, &[ONE]).await;
    }
}

#[tokio::test]
async fn a_stream_at_a_replica_that_leaves_goes_on_to_its_end() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let old = Origin::start(move |_| {
        let wait = wait.clone();
        async move {
            vec![
                events(),
                chunk("data: one\n\n"),
                Action::Wait(wait),
                chunk("data: two\n\n"),
                last_chunk(),
            ]
        }
    })
    .await;
    let port = old.address.port();
    let new = SocketAddr::from((TWO, port));
    let _new = Origin::start_at(new, Options::default(), |_| async { json(200, "\"127.0.0.2\"") }).await;
    let dns = Dns::start().await;
    dns.say("api", Records::Addresses(vec![ONE]));
    let edge = edge(&dns, |discovery| discovery.dns = Some(format!("api:{port}"))).await;
    let mut client = edge.client().await;
    client.send(read()).await;
    client.final_head().await;
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: one\n\n");
    dns.say("api", Records::Addresses(vec![TWO]));
    let status = eventually("the new one to be found", || async {
        let status = metrics::ask(edge.admin, "/upstreams").await.json();
        (status[0]["replicas"].as_array().unwrap().len() == 2).then_some(status)
    })
    .await;
    until(&edge, &[TWO]).await;
    let leaving: Vec<_> = status[0]["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (&r["leaving"], &r["in_flight"]))
        .collect();
    assert_eq!(leaving, [(&true.into(), &1.into()), (&false.into(), &0.into())]);
    go_on.notify_one();
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: two\n\n");
    assert_eq!(client.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn services_name_their_ports_and_those_of_a_later_priority_stand_by() {
    let (first, _one) = origins(&[ONE]).await;
    let (second, two) = origins(&[TWO]).await;
    let dns = Dns::start().await;
    // `localhost` is no name of this server, but of every machine.
    dns.say(
        "_http._tcp.api.test",
        Records::Services(vec![(1, first, "localhost"), (2, second, "localhost")]),
    );
    let edge = edge(&dns, |discovery| {
        discovery.srv = Some("_http._tcp.api.test".into())
    })
    .await;
    until(&edge, &[ONE]).await;
    let status = metrics::ask(edge.admin, "/upstreams").await.json();
    let standby: Vec<_> = status[0]["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (&r["url"], &r["standby"]))
        .collect();
    let url = |port| serde_json::Value::from(format!("http://localhost:{port}"));
    assert_eq!(
        standby,
        [(&url(first), &false.into()), (&url(second), &true.into())]
    );
    drop(two);
}

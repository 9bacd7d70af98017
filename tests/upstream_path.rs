//! resilience, routing and upstream put together, in front of real sockets.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dify_edge::config::{Config, ReplicaConfig, UpstreamConfig, Upstreams};
use dify_edge::resilience::{Retry, RetryLayer, RetryMetrics};
use dify_edge::routing::control::RoutingControl;
use dify_edge::routing::{Routing, RoutingLayer, RoutingMetrics};
use dify_edge::types::cluster::Works;
use dify_edge::types::outcome::RouteClass;
use dify_edge::types::request::{Client, FetchHead, FetchRequest, Lane, Timeouts, UpstreamId};
use dify_edge::types::time::Clock;
use dify_edge::types::units::Ratio;
use dify_edge::types::{Body, Failure};
use dify_edge::upstream::{Upstream, UpstreamMetrics};
use http::{Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

#[derive(Default)]
struct Seen {
    writes: Mutex<HashMap<String, usize>>,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

/// Answers with the request's content; closes after every third answer without having said so.
async fn origin(seen: Arc<Seen>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                for _ in 0..3 {
                    let mut length = 0;
                    let mut first = String::new();
                    if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
                        return;
                    }
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line).await.unwrap();
                        if let Some(text) = line.strip_prefix("content-length: ") {
                            length = text.trim().parse().unwrap();
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let mut content = vec![0; length];
                    stream.read_exact(&mut content).await.unwrap();
                    let content = String::from_utf8(content).unwrap();
                    let busy = seen.busy.fetch_add(1, Ordering::SeqCst) + 1;
                    seen.busiest.fetch_max(busy, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    if first.starts_with("POST") {
                        *seen.writes.lock().entry(content.clone()).or_default() += 1;
                    }
                    seen.busy.fetch_sub(1, Ordering::SeqCst);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Path {
    service: Retry<Routing<Upstream>>,
    control: RoutingControl,
}

fn path(addresses: &[SocketAddr], slots: usize) -> Path {
    let mut config = UpstreamConfig::default();
    config.connections.limit = slots;
    config.connections.pool_share = Ratio(1.0);
    for address in addresses {
        config.replicas.push(ReplicaConfig {
            url: format!("http://{address}"),
            ..ReplicaConfig::default()
        });
    }
    let config = Config {
        upstreams: Upstreams::from([("api".to_owned(), config)]),
        ..Config::default()
    };
    let registry = prometheus::Registry::new();
    let clock = Clock::System;
    let tracker = TaskTracker::new();
    let upstream_metrics = UpstreamMetrics::register(&registry).unwrap();
    let upstream = Upstream::new(
        &config.upstreams,
        clock.clone(),
        &upstream_metrics,
        tracker.clone(),
    )
    .unwrap();
    let routing_metrics = RoutingMetrics::register(&registry).unwrap();
    let (routing, control) = RoutingLayer::new(&config, clock.clone(), &routing_metrics).unwrap();
    let token = CancellationToken::new();
    upstream.spawn_background(token.clone(), &tracker);
    control.spawn_background(&upstream, &token, &tracker);
    let retry = RetryLayer::new(
        &config.upstreams,
        clock,
        &RetryMetrics::register(&registry).unwrap(),
        1,
    );
    Path {
        service: retry.layer(routing.layer(upstream)),
        control,
    }
}

impl Path {
    async fn fetch(&self, request: Request<Body>) -> Result<Bytes, Failure> {
        let (parts, body) = request.into_parts();
        let head = FetchHead {
            parts,
            client: Client {
                peer: "203.0.113.7:4711".parse().unwrap(),
                tls: false,
                trusted: false,
            },
            upstream: UpstreamId(0),
            class: RouteClass::Passthrough,
            template: "*",
            lane: Lane::Short,
            principal: None,
            works: Works::default(),
            timeouts: Timeouts {
                total: None,
                idle: None,
            },
            deadline: None,
        };
        let response: Response<Body> = self.service.clone().call(FetchRequest { head, body }).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}

async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_and_no_write_arrives_twice_though_one_replica_is_dead_and_the_others_close() {
    let seen: [Arc<Seen>; 2] = Default::default();
    let addresses = [
        nobody().await,
        origin(seen[0].clone()).await,
        origin(seen[1].clone()).await,
    ];
    let path = Arc::new(path(&addresses, 4));
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16 {
        let path = path.clone();
        tasks.spawn(async move {
            for n in 0..60 {
                if n % 2 == 0 {
                    let content = Bytes::from(format!("{worker}-{n}"));
                    let request = Request::post("/v1/messages")
                        .header("content-length", content.len())
                        .body(Body::from(content.clone()))
                        .unwrap();
                    assert_eq!(path.fetch(request).await.unwrap(), content);
                } else {
                    path.fetch(Request::get("/v1/info").body(Body::Empty).unwrap())
                        .await
                        .unwrap();
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let mut arrived = 0;
    for seen in &seen {
        let writes = seen.writes.lock();
        arrived += writes.len();
        assert!(writes.values().all(|times| *times == 1), "a write arrived twice");
        assert!((1..=4).contains(&seen.busiest.load(Ordering::SeqCst)));
    }
    assert_eq!(arrived, 16 * 30);
    let status = path.control.snapshot().remove(0);
    let healthy: Vec<_> = status.replicas.iter().map(|replica| replica.healthy).collect();
    assert_eq!(healthy, [false, true, true]);
    assert!(status.replicas.iter().all(|replica| replica.in_flight == 0));
    assert!(status.lanes[0].longest_queue > 0);
}

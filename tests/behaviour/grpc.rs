//! gRPC through the proxy, with a real client and server: every shape of call, how calls end, and who is told what
//! when something fails.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use dify_edge::config::{AccessLog, Config, ReplicaConfig, UpstreamProtocol};
use dify_edge::types::units::{Size, Span};
use futures_util::stream;
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto, pki_types::PrivateKeyDer};
use tonic::{Code, Request};

use crate::support::edge::{self, Running};
use crate::support::grpc::{Client, Server};
use crate::support::{child, eventually, http2, metrics, within};

/// The proxy before these servers.
async fn before(servers: &[&Server], change: impl FnOnce(&mut Config)) -> Running {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    edge::start(&addresses, |config| {
        edge::api(config).protocol = UpstreamProtocol::H2c;
        change(config);
    })
    .await
}

async fn one() -> (Server, Running, Client) {
    let server = Server::start("a", None).await;
    let edge = before(&[&server], |_| {}).await;
    let client = Client::connect(edge.address).await;
    (server, edge, client)
}

/// Connections to servers that were opened for calls. Probes, which come when somebody has waited for long, have their
/// own.
async fn opened(edge: &Running) -> f64 {
    metrics::sum(edge.admin, "dify_edge_upstream_connections_opened_total", &[]).await
}

/// Messages that the test sends when it likes.
fn fed() -> (
    mpsc::UnboundedSender<Bytes>,
    impl stream::Stream<Item = Bytes> + Send,
) {
    let (feed, fed) = mpsc::unbounded_channel();
    let messages = stream::unfold(fed, |mut fed| async move { Some((fed.recv().await?, fed)) });
    (feed, messages)
}

#[tokio::test]
async fn every_shape_of_call_passes() {
    let (server, edge, client) = one().await;
    assert_eq!(client.ask("hello").await.unwrap(), "a hello");

    let mut answers = client.server_stream("count:100").await.unwrap();
    for number in 0..100 {
        let message = within("a message", answers.message()).await.unwrap();
        assert_eq!(message.unwrap(), number.to_string());
    }
    assert!(answers.message().await.unwrap().is_none());

    let messages = stream::iter((0..100).map(|_| Bytes::from("x")));
    assert_eq!(client.client_stream(messages).await.unwrap(), "x".repeat(100));

    // Each message is sent when the answer to the one before is there.
    let (feed, messages) = fed();
    let mut answers = client.both(messages).await.unwrap();
    for number in 0..100 {
        feed.send(Bytes::from(number.to_string())).unwrap();
        let message = within("a message", answers.message()).await.unwrap();
        assert_eq!(message.unwrap(), number.to_string());
    }
    drop(feed);
    assert!(within("the end", answers.message()).await.unwrap().is_none());
    assert_eq!((opened(&edge).await, server.cancelled()), (1.0, 0));
}

#[tokio::test]
async fn long_messages_pass_both_ways() {
    let (_server, _edge, client) = one().await;
    let long = Bytes::from(vec![b'x'; 3 << 20]);
    let answer = client.client_stream(stream::iter([long.clone()])).await.unwrap();
    assert_eq!(answer, long);
}

#[tokio::test]
async fn metadata_and_every_status_pass() {
    let (_server, _edge, client) = one().await;
    let mut request = Request::new("hello");
    request
        .metadata_mut()
        .insert("x-ask", "my answer".parse().unwrap());
    let answer = client.unary(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-answer").unwrap(), "my answer");
    for (call, code) in [
        ("fail:3", Code::InvalidArgument),
        ("fail:5", Code::NotFound),
        ("fail:8", Code::ResourceExhausted),
        ("fail:13", Code::Internal),
        ("fail:16", Code::Unauthenticated),
    ] {
        let status = client.ask(call).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, "as you like: 100 %"));
        assert_eq!(status.metadata().get("x-why").unwrap(), "because");
    }
    let mut answers = client.server_stream("fail-late:9").await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap(), "a");
    let status = within("the end", answers.message()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "as you like: 100 %")
    );
}

#[tokio::test]
async fn who_cancels_a_call_ends_it_at_the_server_and_disturbs_no_other() {
    let (server, edge, client) = one().await;
    let (feed, messages) = fed();
    let mut other = client.both(messages).await.unwrap();
    let mut streaming = client.server_stream("hang").await.unwrap();
    assert_eq!(streaming.message().await.unwrap().unwrap(), "a");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.ask("hang").await }
    });
    eventually("the call to arrive", || async {
        (server.calls() == 3).then_some(())
    })
    .await;
    drop(streaming);
    eventually("the stream to end", || async {
        (server.cancelled() == 1).then_some(())
    })
    .await;
    waiting.abort();
    eventually("the call to end", || async {
        (server.cancelled() == 2).then_some(())
    })
    .await;
    feed.send("still here".into()).unwrap();
    assert_eq!(
        within("a message", other.message()).await.unwrap().unwrap(),
        "still here"
    );
    assert_eq!(opened(&edge).await, 1.0);
    let streams = || metrics::sum(edge.admin, "dify_edge_upstream_streams", &[]);
    eventually("the streams to end", || async {
        (streams().await == 1.0).then_some(())
    })
    .await;
}

/// A call as bytes.
fn call(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://dify.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

fn framed(message: &str) -> Full<Bytes> {
    let length = u32::try_from(message.len()).expect("a short one").to_be_bytes();
    Full::from([&[0], &length[..], message.as_bytes()].concat())
}

#[tokio::test]
async fn the_clients_time_out_is_the_deadline() {
    let (server, edge, _client) = one().await;
    let mut sender = http2::over(TcpStream::connect(edge.address).await.unwrap()).await;
    let request = call("/test.Echo/Unary")
        .header("grpc-timeout", "100m")
        .body(framed("hang"))
        .unwrap();
    let response = http2::send(&mut sender, request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert!(
        response.headers()["proxy-status"]
            .to_str()
            .unwrap()
            .contains("http_response_timeout")
    );
    eventually("the call to end", || async {
        (server.cancelled() == 1).then_some(())
    })
    .await;
    // Of a stream that has begun the trailers say so.
    let request = call("/test.Echo/ServerStream")
        .header("grpc-timeout", "100000u")
        .body(framed("hang"))
        .unwrap();
    let response = http2::send(&mut sender, request).await;
    assert!(!response.headers().contains_key("grpc-status"));
    let whole = within("the end", http_body_util::BodyExt::collect(response.into_body()));
    assert_eq!(whole.await.unwrap().trailers().unwrap()["grpc-status"], "4");
    eventually("the stream to end", || async {
        (server.cancelled() == 2).then_some(())
    })
    .await;
    // One that cannot be read is the server's business.
    let request = call("/test.Echo/Unary")
        .header("grpc-timeout", "soon")
        .body(framed("x"))
        .unwrap();
    assert_eq!(http2::send(&mut sender, request).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_need_few_connections() {
    let (server, edge, _client) = one().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::connect(edge.address).await);
    }
    let mut open = Vec::new();
    for number in 0..1000 {
        let (feed, messages) = fed();
        let mut answers = clients[number % 10].both(messages).await.unwrap();
        feed.send("first".into()).unwrap();
        assert_eq!(
            within("a message", answers.message()).await.unwrap().unwrap(),
            "first"
        );
        open.push((feed, answers));
    }
    assert_eq!(
        metrics::sum(edge.admin, "dify_edge_upstream_streams", &[]).await,
        1000.0
    );
    // All are there at once, and all go on.
    for (feed, _) in &open {
        feed.send("second".into()).unwrap();
    }
    for (feed, mut answers) in open {
        assert_eq!(
            within("a message", answers.message()).await.unwrap().unwrap(),
            "second"
        );
        drop(feed);
        assert!(within("the end", answers.message()).await.unwrap().is_none());
    }
    assert_eq!((opened(&edge).await, server.calls()), (10.0, 1000));

    // So does a thousand calls that come at the same moment.
    let mut calls = JoinSet::new();
    for number in 0..1000 {
        let client = clients[number % 10].clone();
        calls.spawn(async move { client.ask("gate").await });
    }
    eventually("all calls to arrive", || async {
        (server.calls() == 2000).then_some(())
    })
    .await;
    server.open_gate(1000);
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap(), "a gate");
    }
    assert_eq!(opened(&edge).await, 10.0);
}

#[tokio::test]
async fn the_calls_of_one_connection_are_spread_over_the_replicas() {
    let servers = [Server::start("a", None).await, Server::start("b", None).await];
    let edge = before(&[&servers[0], &servers[1]], |_| {}).await;
    let client = Client::connect(edge.address).await;
    for _ in 0..100 {
        client.ask("hello").await.unwrap();
    }
    for server in &servers {
        assert!((40..=60).contains(&server.calls()), "{}", server.calls());
    }
    assert_eq!(opened(&edge).await, 2.0);
}

#[tokio::test]
async fn a_replica_that_dies_is_told_to_those_who_wait_for_it_and_left_out_for_others() {
    let servers = [Server::start("a", None).await, Server::start("b", None).await];
    let edge = before(&[&servers[0], &servers[1]], |config| {
        edge::api(config).health_check.unhealthy_after = 2;
    })
    .await;
    let client = Client::connect(edge.address).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut answers = client.server_stream("hang").await.unwrap();
        let name = answers.message().await.unwrap().unwrap();
        streams.push((name, answers));
    }
    servers[0].kill();
    for (name, answers) in &mut streams {
        if name == "a" {
            let status = within("the end", answers.message()).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            assert_eq!(status.message(), "the upstream's answer broke off");
        }
    }
    for _ in 0..20 {
        assert_eq!(client.ask("hello").await.unwrap(), "b hello");
    }
    let healthy = || metrics::sum(edge.admin, "dify_edge_upstream_healthy", &[]);
    eventually("the replica to be left out", || async {
        (healthy().await == 1.0).then_some(())
    })
    .await;
    // The other one's streams have not noticed.
    let left = streams.iter().filter(|(name, _)| name == "b").count();
    assert_eq!((left, servers[1].cancelled()), (2, 0));
}

#[tokio::test]
async fn a_server_that_says_that_it_cannot_opens_its_breaker_and_one_that_says_no_does_not() {
    let server = Server::start("a", None).await;
    let edge = before(&[&server], |config| {
        config.circuit_breaker.request_volume = 5;
        config.circuit_breaker.sleep_window = Span::secs(3600);
    })
    .await;
    let client = Client::connect(edge.address).await;
    let state = || metrics::sum(edge.admin, "dify_edge_breaker_state", &[]);
    for call in [
        "fail:5", "fail:7", "fail:13", "fail:2", "fail:8", "fail:16", "fail:1",
    ] {
        assert!(client.ask(call).await.is_err());
    }
    assert_eq!(state().await, 0.0);
    for _ in 0..7 {
        // Half of a dozen or so are enough.
        let Ok(mut answers) = client.server_stream("fail-late:14").await else {
            break;
        };
        assert!(answers.message().await.is_ok());
        let status = within("the end", answers.message()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        let _ = client.ask("fail:4").await;
    }
    assert!(state().await > 0.0);
    let before = server.calls();
    let status = client.ask("hello").await.unwrap_err();
    assert_eq!((status.code(), server.calls()), (Code::Unavailable, before));
    assert_ne!(status.message(), "as you like: 100 %");
}

#[tokio::test]
async fn what_fails_in_the_proxy_is_told_as_a_grpc_status() {
    let (server, edge, client) = one().await;
    server.kill();
    let status = client.ask("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the upstream refuses connections");
    assert!(status.metadata().get("proxy-status").is_some());
    drop(edge);

    let server = Server::start("a", None).await;
    let edge = before(&[&server], |config| config.limits.body.passthrough = Size(1000)).await;
    let client = Client::connect(edge.address).await;
    let long = stream::iter((0..100).map(|_| Bytes::from("0123456789")));
    let status = client.client_stream(long).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limits.body.passthrough"), "{status}");
    // gRPC or not, who does not speak it gets what everybody gets.
    let mut sender = http2::over(TcpStream::connect(edge.address).await.unwrap()).await;
    let request = call("/test.Echo/Unary")
        .header("content-length", "2000")
        .body(Full::from(vec![0; 2000]))
        .unwrap();
    let (mut parts, body) = request.into_parts();
    parts
        .headers
        .insert("content-type", "application/json".parse().unwrap());
    let response = http2::send(&mut sender, http::Request::from_parts(parts, body)).await;
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn a_server_without_pages_is_probed_in_its_own_words() {
    let server = Server::start("a", None).await;
    let edge = before(&[&server], |config| {
        let check = &mut edge::api(config).health_check;
        (check.interval, check.unhealthy_after) = (Span::millis(10), 1);
        check.grpc = Some("test.Echo".into());
    })
    .await;
    eventually("probes", || async { (server.probes() > 3).then_some(()) }).await;
    assert_eq!(
        metrics::sum(edge.admin, "dify_edge_upstream_healthy", &[]).await,
        1.0
    );
    server.set_well(false);
    metrics::until_healthy(edge.admin, 0.0).await;
    server.set_well(true);
    metrics::until_healthy(edge.admin, 1.0).await;
    server.kill();
    metrics::until_healthy(edge.admin, 0.0).await;
}

/// A certificate for `localhost` in a file that goes away with it.
struct Authority(PathBuf);

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn certified() -> (Authority, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let file = std::env::temp_dir().join(format!("dify-edge-grpc-{}.pem", std::process::id()));
    std::fs::write(&file, made.cert.pem()).expect("a file");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    (Authority(file), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn calls_pass_over_tls_to_a_server_that_the_machine_trusts() {
    let (authority, tls) = certified();
    let server = Server::start("a", Some(tls)).await;
    let mut config = edge::config(&[]);
    let api = edge::api(&mut config);
    api.protocol = UpstreamProtocol::H2;
    api.replicas = vec![ReplicaConfig {
        url: format!("https://localhost:{}", server.address.port()),
        ..ReplicaConfig::default()
    }];
    let file = authority.0.to_str().expect("a path");
    let served = child::serve_with(config, AccessLog::Off, &[("SSL_CERT_FILE", file)]).await;
    let client = Client::connect(served.address).await;
    assert_eq!(client.ask("hello").await.unwrap(), "a hello");
    let (feed, messages) = fed();
    let mut answers = client.both(messages).await.unwrap();
    feed.send("one".into()).unwrap();
    assert_eq!(
        within("a message", answers.message()).await.unwrap().unwrap(),
        "one"
    );
}

//! Over real sockets: TLS, caps, the drain, and what the access log says.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::super::Wire;
use super::super::tls::Certificate;
use super::*;
use crate::config::TlsConfig;

/// The whole stage at work.
struct Edge {
    address: SocketAddr,
    drain: CancellationToken,
    stop: CancellationToken,
    connections: TaskTracker,
    registry: prometheus::Registry,
    serving: JoinHandle<()>,
}

impl Edge {
    fn start(config: &Config) -> Self {
        let registry = prometheus::Registry::new();
        let metrics = WireMetrics::register(&registry).unwrap();
        let wire = Wire::bind(config, metrics, Clock::System).unwrap();
        let address = wire.addresses()[0];
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let serving = wire.serve(
            tower::service_fn(app),
            drain.clone(),
            stop.clone(),
            connections.clone(),
        );
        Self {
            address,
            drain,
            stop,
            connections,
            registry,
            serving: tokio::spawn(serving),
        }
    }

    async fn connect(&self) -> Peer<TcpStream> {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_connections_as_it_has_clients() {
    let mut config = config();
    config.limits.connections_per_peer = 1;
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let edge = Edge::start(&config);
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(edge.connect().await);
    }
    for peer in &mut peers {
        assert_eq!(peer.get("/hello").await.status, 200);
    }
}

#[tokio::test]
async fn one_peer_gets_429_beyond_its_cap_and_its_place_back_when_a_connection_ends() {
    let mut config = config();
    config.limits.connections_per_peer = 2;
    let edge = Edge::start(&config);
    let mut first = edge.connect().await;
    let mut second = edge.connect().await;
    assert_eq!(first.get("/hello").await.status, 200);
    assert_eq!(second.get("/hello").await.status, 200);
    let mut third = edge.connect().await;
    let (status, message) = third.refusal().await;
    assert_eq!(status, 429);
    assert!(message.contains("more than 2 connections"), "{message}");
    assert_eq!(
        metric(
            &edge.registry,
            "dify_edge_connections_refused_total",
            &["per_peer"]
        ),
        1.0
    );
    first
        .send("GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    first.rest().await;
    // The place is given back a moment after the socket is closed.
    for attempt in 0.. {
        assert!(attempt < 1000, "the place was not given back");
        let mut again = edge.connect().await;
        again.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
        if again.reply().await.status == 200 {
            break;
        }
    }
}

#[tokio::test]
async fn connections_beyond_all_wait_until_one_ends() {
    let mut config = config();
    config.limits.connections = 1;
    let edge = Edge::start(&config);
    let mut first = edge.connect().await;
    assert_eq!(first.get("/hello").await.status, 200);
    let mut second = edge.connect().await;
    second.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
    // The first is still served, the second is not.
    assert_eq!(first.get("/hello").await.status, 200);
    assert_eq!(edge.connections.len(), 1);
    drop(first);
    assert_eq!(second.reply().await.status, 200);
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_closes_what_is_idle() {
    let edge = Edge::start(&config());
    let mut idle = edge.connect().await;
    assert_eq!(idle.get("/hello").await.status, 200);
    let fresh = edge.connect().await;
    let mut busy = edge.connect().await;
    busy.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert!(busy.head().await.contains("100 Continue"));
    let mut h2 = edge.connect().await.h2().await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = stream::poll_fn(move |cx| {
        receiver
            .poll_recv(cx)
            .map(|next| next.map(|bytes| Ok(Frame::data(bytes))))
    });
    let request = Request::post("http://h/echo").body(streaming(frames)).unwrap();
    let in_flight = tokio::spawn(h2.send_request(request));
    sender.send(Bytes::from("streamed")).await.unwrap();
    while edge.connections.len() < 4 || metric(&edge.registry, "dify_edge_connections", &["h2"]) < 1.0 {
        tokio::task::yield_now().await;
    }

    edge.drain.cancel();
    assert_eq!(idle.rest().await, "");
    assert_eq!(Peer::new(fresh.io).rest().await, "");
    while TcpStream::connect(edge.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!edge.serving.is_finished());
    busy.send("body").await;
    let reply = busy.reply().await;
    assert_eq!(reply.body, "body");
    assert_eq!(busy.rest().await, "");
    drop(sender);
    assert_eq!(in_flight.await.unwrap().unwrap().status(), 200);
    edge.serving.await.unwrap();
    assert!(edge.connections.is_empty());
}

#[tokio::test]
async fn a_stop_cuts_what_a_drain_left() {
    let edge = Edge::start(&config());
    let mut busy = edge.connect().await;
    busy.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    busy.head().await;
    let mut tunnel = edge.connect().await;
    tunnel
        .send("GET /upgrade HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx")
        .await;
    tunnel.head().await;
    edge.drain.cancel();
    tunnel.send("y").await;
    tunnel.until(|bytes| (bytes == b"xy").then_some((2, ()))).await;
    assert_eq!(edge.connections.len(), 2);
    edge.stop.cancel();
    assert_eq!(busy.rest().await, "");
    assert_eq!(tunnel.rest().await, "");
    edge.serving.await.unwrap();
}

#[tokio::test]
async fn content_without_a_length_that_breaks_off_ends_with_a_reset() {
    let edge = Edge::start(&config());
    let mut peer = edge.connect().await;
    peer.send("GET /fail HTTP/1.0\r\nHost: h\r\n\r\n").await;
    let mut text = Vec::new();
    let error = peer.io.read_to_end(&mut text).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_socket_that_nobody_reads_from_is_closed() {
    let edge = Edge::start(&config());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut peer = Peer::new(socket.connect(edge.address).await.unwrap());
    peer.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n").await;
    tokio::time::pause();
    sleep(Duration::from_secs(70)).await;
    assert_eq!(metric(&edge.registry, "dify_edge_connections", &["h1"]), 1.0);
    assert_eq!(metric(&edge.registry, "dify_edge_requests_total", &[]), 0.0);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(metric(&edge.registry, "dify_edge_requests_total", &[]), 1.0);
    assert_eq!(metric(&edge.registry, "dify_edge_connections", &["h1"]), 0.0);
}

/// Writes a new certificate and key, and returns the certificate.
fn write_certificate(files: &TlsConfig, age: Duration) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let later = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + age;
    for (path, text) in [
        (&files.cert, made.cert.pem()),
        (&files.key, made.signing_key.serialize_pem()),
    ] {
        let mut file = std::fs::File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_modified(later).unwrap();
    }
    made.cert.der().clone()
}

fn certificate_files(name: &str) -> TlsConfig {
    let folder = std::env::temp_dir().join(format!("dify-edge-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    TlsConfig {
        cert: folder.join("tls.crt"),
        key: folder.join("tls.key"),
    }
}

fn connector(root: CertificateDer<'static>, alpn: &[&str]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn tls_offers_both_protocols() {
    let files = certificate_files("alpn");
    let root = write_certificate(&files, Duration::ZERO);
    let mut config = config();
    config.listen[0].tls = Some(files.clone());
    let edge = Edge::start(&config);
    let open = async |alpn: &[&str]| {
        let stream = TcpStream::connect(edge.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector(root.clone(), alpn).connect(name, stream).await.unwrap()
    };
    for alpn in [&["http/1.1"][..], &[]] {
        let mut peer = Peer::new(open(alpn).await);
        assert_eq!(peer.get("/hello").await.body, "hello");
        peer.send("GET /hello HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n")
            .await;
        assert_eq!(peer.refusal().await.0, 400);
    }
    let stream = open(&["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = Peer::new(stream).h2().await;
    let request = Request::get("https://h/hello").body(Body::Empty).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);

    let mut plain = edge.connect().await;
    plain.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(!plain.rest().await.contains("HTTP"));
    assert_eq!(
        metric(
            &edge.registry,
            "dify_edge_connections_refused_total",
            &["handshake"]
        ),
        1.0
    );
    std::fs::remove_dir_all(files.cert.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
    let files = certificate_files("reload");
    write_certificate(&files, Duration::ZERO);
    let certificate = Certificate::load(&files).unwrap();
    let first = certificate.current();
    certificate.look();
    assert!(Arc::ptr_eq(&first, &certificate.current()));

    let root = write_certificate(&files, Duration::from_secs(1));
    certificate.look();
    let second = certificate.current();
    assert!(!Arc::ptr_eq(&first, &second));
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let accept = tokio_rustls::TlsAcceptor::from(second.clone()).accept(theirs);
    let name = ServerName::try_from("localhost").unwrap();
    let (connected, accepted) = tokio::join!(connector(root, &[]).connect(name, ours), accept);
    assert!(connected.is_ok() && accepted.is_ok());

    std::fs::write(&files.key, "not a key").unwrap();
    certificate.look();
    assert!(Arc::ptr_eq(&second, &certificate.current()));
    assert!(
        Certificate::load(&files)
            .unwrap_err()
            .to_string()
            .contains("tls.key: cannot read a private key")
    );
    std::fs::remove_dir_all(files.cert.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let mut config = config();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.listen[0].address = taken.local_addr().unwrap();
    let metrics = WireMetrics::register(&prometheus::Registry::new()).unwrap();
    let error = Wire::bind(&config, metrics, Clock::System)
        .unwrap_err()
        .to_string();
    assert!(error.contains(&config.listen[0].address.to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_access_log_names_route_and_caller_and_no_secret() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // The place that logs registers at its first use; not while other tests use it, too.
    let mut peer = Rig::new().connect();
    assert_eq!(peer.get("/hello").await.status, 200);
    let guard = tracing::subscriber::set_default(subscriber);
    let secrets = "Authorization: Bearer app-Secret\r\nCookie: s=Secret\r\nX: Secret\r\n\
                   traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    peer.send(format!(
        "GET /hello?key=Secret HTTP/1.1\r\nHost: Secret\r\n{secrets}\r\n"
    ))
    .await;
    assert_eq!(peer.reply().await.body, "hello");
    peer.send(format!("GET /Secret HTTP/1.1\r\nHost: Secret\r\n{secrets}\r\n"))
        .await;
    assert_eq!(peer.reply().await.status, 404);
    peer.send(format!(
        "GET /Secret HTTP/1.1\r\nHost: Secret\r\nA : b\r\n{secrets}\r\n"
    ))
    .await;
    assert_eq!(peer.reply().await.status, 400);
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let access: Vec<&str> = text.lines().filter(|line| line.contains(" access: ")).collect();
    assert_eq!(access.len(), 3, "{text}");
    for part in [
        "peer=192.0.2.1",
        "method=GET",
        "route=\"/hello\"",
        "class=\"metadata\"",
        "cache=\"hit\"",
        "status=200",
        "bytes=5",
        "principal=\"abababab\"",
        "trace=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
        "version=HTTP/1.1",
        "end=\"completed\"",
    ] {
        assert!(access[0].contains(part), "{part}: {}", access[0]);
    }
    assert!(access[1].contains("status=404") && access[2].contains("status=400"));
    assert!(access.iter().all(|line| !line.contains("Secret")), "{text}");
}

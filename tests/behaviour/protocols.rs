//! The ways in which a client may speak: HTTP/1.0, HTTP/1.1 with all that it allows, HTTP/2 in clear and over TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use dify_edge::config::TlsConfig;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto, pki_types::ServerName};

use crate::support::client::{Client, get, post, request};
use crate::support::edge::{self, Running};
use crate::support::origin::{Action, Options, Origin, answer, chunk, chunked, events, json, last_chunk};
use crate::support::{http2, within};

const KEY: (&str, &str) = ("Authorization", "Bearer app-1");

/// Before an origin that says what it was asked and how much came with it.
async fn telling() -> (Origin, Running) {
    let origin =
        Origin::start(|seen| async move { json(200, format!("{} {}", seen.line(), seen.body_length)) }).await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    (origin, edge)
}

fn h2_request(method: &str, target: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("http://dify.test{target}"))
        .header("authorization", "Bearer app-1")
        .body(Full::from(body.to_owned()))
        .expect("a request")
}

#[tokio::test]
async fn requests_that_are_sent_in_one_packet_are_answered_in_order() {
    let (origin, edge) = telling().await;
    let mut client = edge.client().await;
    let targets: Vec<String> = (0..20)
        .map(|number| format!("/v1/datasets?page={number}"))
        .collect();
    let all: Vec<u8> = targets.iter().flat_map(|target| get(target, &[KEY])).collect();
    client.send(&all).await;
    for target in &targets {
        assert_eq!(client.response("GET").await.text(), format!("GET {target} 0"));
    }
    // Hits and misses, with and without content.
    let mixed: Vec<u8> = [
        get(&targets[0], &[KEY]),
        post("/v1/chat-messages", &[KEY], "{\"user\": \"u\"}"),
        get(&targets[1], &[KEY]),
    ]
    .concat();
    client.send(&mixed).await;
    assert!(client.response("GET").await.is_hit());
    assert_eq!(client.response("POST").await.text(), "POST /v1/chat-messages 13");
    assert!(client.response("GET").await.is_hit());
    assert_eq!(origin.counts().requests, 21);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_before_it_sends() {
    let (_origin, edge) = telling().await;
    let mut client = edge.client().await;
    client
        .send("POST /v1/chat-messages HTTP/1.1\r\nHost: dify.test\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let interim = client.head().await;
    assert!(interim.line.starts_with("HTTP/1.1 100"), "{}", interim.line);
    client.send("{\"user\": \"u\"}").await;
    let answer = client.response("POST").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "POST /v1/chat-messages 13")
    );
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let origin = Origin::start(|_| async {
        vec![
            chunked(&[("Trailer", "X-Sum")]),
            chunk("content"),
            Action::Send(b"0\r\nX-Sum: 42\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    client
        .send(
            "POST /console/api/files/upload HTTP/1.1\r\nHost: dify.test\r\nTE: trailers\r\nTrailer: X-Up\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Up: 7\r\n\r\n",
        )
        .await;
    let answer = client.response("POST").await;
    assert_eq!((answer.text().as_str(), answer.cut), ("content", None));
    assert_eq!(lower(&answer.trailers), [("x-sum".to_owned(), "42")]);
    let seen = origin.seen().pop().expect("a request");
    assert_eq!(seen.body, b"abc");
    assert_eq!(lower(&seen.trailers), [("x-up".to_owned(), "7")]);
}

/// Names of fields are the same in any case.
fn lower(fields: &[(String, String)]) -> Vec<(String, &str)> {
    fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
        .collect()
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_stream_without_chunks_and_its_end_as_the_end_of_the_connection() {
    let origin =
        Origin::start(|_| async { vec![events(), chunk("data: 1\n\n"), chunk("data: 2\n\n"), last_chunk()] })
            .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    let answer = client
        .exchange("POST /v1/chat-messages HTTP/1.0\r\nHost: dify.test\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    assert_eq!((answer.status, answer.cut), (200, None));
    assert_eq!(answer.field("transfer-encoding"), None);
    assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\n");
}

#[tokio::test]
async fn an_http_1_0_client_may_keep_its_connection_when_it_asks_to() {
    let (_origin, edge) = telling().await;
    let mut client = edge.client().await;
    let head = "GET /v1/info HTTP/1.0\r\nHost: dify.test\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..2 {
        let answer = client.exchange(head).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.field("connection").map(str::to_ascii_lowercase).as_deref(),
            Some("keep-alive")
        );
    }
    let last = client
        .exchange("GET /v1/info HTTP/1.0\r\nHost: dify.test\r\n\r\n")
        .await;
    assert_eq!(last.status, 200);
    assert!(client.ends_cleanly().await);
}

#[tokio::test]
async fn an_origin_that_speaks_http_1_0_or_ends_by_closing_is_understood() {
    let origin = Origin::start(|_| async {
        vec![
            Action::Send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end".to_vec()),
            Action::Close,
        ]
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let answer = edge.ask(get("/console/api/apps", &[])).await;
    assert_eq!(
        (answer.version.as_str(), answer.text().as_str()),
        ("HTTP/1.1", "until the end")
    );
    assert_eq!(answer.cut, None);
}

#[tokio::test]
async fn head_and_204_and_304_have_no_content_and_leave_the_connection_usable() {
    let origin = Origin::start(|seen| async move {
        match seen.target.as_str() {
            "/none" => vec![Action::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
            "/same" => vec![Action::Send(
                b"HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n".to_vec(),
            )],
            _ if seen.method == "HEAD" => vec![Action::Send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_vec(),
            )],
            _ => json(200, "{}"),
        }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    for (method, target, status) in [
        ("HEAD", "/x", 200),
        ("GET", "/none", 204),
        ("GET", "/same", 304),
        ("GET", "/x", 200),
    ] {
        let answer = client.exchange(request(method, target, &[], b"")).await;
        assert_eq!((answer.status, answer.cut), (status, None), "{method} {target}");
        if method == "HEAD" {
            assert_eq!(answer.field("content-length"), Some("99"));
        }
    }
}

#[tokio::test]
async fn more_bytes_than_announced_do_not_become_the_next_answer() {
    let origin = Origin::start(|_| async {
        vec![Action::Send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged".to_vec(),
        )]
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut client = edge.client().await;
    for _ in 0..5 {
        let answer = client.exchange(get("/console/api/apps", &[])).await;
        assert_ne!(answer.text(), "forged");
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge_is_spoken_on_the_same_port() {
    let (origin, edge) = telling().await;
    let socket = TcpStream::connect(edge.address).await.expect("a connection");
    let mut sender = http2::over(socket).await;
    let first = http2::send(&mut sender, h2_request("GET", "/v1/info", "")).await;
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(http2::content(first).await, "GET /v1/info 0");
    let second = http2::send(&mut sender, h2_request("GET", "/v1/info", "")).await;
    assert!(
        second.headers()["cache-status"]
            .to_str()
            .expect("text")
            .contains("; hit")
    );
    assert_eq!(http2::content(second).await, "GET /v1/info 0");
    let chat = http2::send(
        &mut sender,
        h2_request("POST", "/v1/chat-messages", "{\"user\": \"u\"}"),
    )
    .await;
    assert_eq!(http2::content(chat).await, "POST /v1/chat-messages 13");
    // One cache for both versions.
    assert!(edge.ask(get("/v1/info", &[KEY])).await.is_hit());
    let seen = origin.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.version == "HTTP/1.1" && seen.field("host") == Some("dify.test"))
    );
}

#[tokio::test]
async fn many_streams_of_one_http_2_connection_are_served_beside_each_other() {
    let together = Arc::new(tokio::sync::Barrier::new(20));
    let origin = Origin::start(move |seen| {
        let together = together.clone();
        async move {
            together.wait().await;
            json(200, seen.target)
        }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let sender = http2::over(TcpStream::connect(edge.address).await.expect("a connection")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut sender = sender.clone();
        tasks.spawn(async move {
            let target = format!("/v1/datasets?page={number}");
            let response = http2::send(&mut sender, h2_request("GET", &target, "")).await;
            assert_eq!(http2::content(response).await, target);
        });
    }
    while let Some(ended) = within("the streams", tasks.join_next()).await {
        ended.expect("a stream");
    }
}

#[tokio::test]
async fn events_pass_one_by_one_over_http_2_and_a_break_is_a_reset_of_the_stream_alone() {
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let origin = Origin::start(move |seen| {
        let gate = gate.clone();
        async move {
            if seen.method == "GET" {
                return json(200, "{}");
            }
            vec![events(), chunk("data: 1\n\n"), Action::Wait(gate), Action::Abort]
        }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut sender = http2::over(TcpStream::connect(edge.address).await.expect("a connection")).await;
    let mut stream = http2::send(&mut sender, h2_request("POST", "/v1/chat-messages", "{}")).await;
    let frame = within("the first event", stream.frame())
        .await
        .expect("a frame")
        .expect("data");
    assert_eq!(frame.into_data().expect("data"), "data: 1\n\n");
    go_on.notify_one();
    assert!(
        within("the break", stream.frame())
            .await
            .expect("not a clean end")
            .is_err()
    );
    let after = http2::send(&mut sender, h2_request("GET", "/v1/info", "")).await;
    assert_eq!(after.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_http_2_client_that_resets_a_stream_ends_it_at_the_origin() {
    let origin =
        Origin::start(|_| async { vec![events(), chunk("data: 1\n\n"), Action::Wait(Arc::default())] }).await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let mut sender = http2::over(TcpStream::connect(edge.address).await.expect("a connection")).await;
    let stream = http2::send(&mut sender, h2_request("POST", "/v1/chat-messages", "{}")).await;
    drop(stream);
    origin.until("the end", |counts| counts.left == 1).await;
}

/// A certificate for `localhost` in files that go away with it.
struct Certificate {
    files: [PathBuf; 2],
    roots: RootCertStore,
}

impl Drop for Certificate {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Certificate {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str, text: String| {
            let name = format!("dify-edge-behaviour-{}-{number}.{kind}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        Self {
            files: [
                file("crt", made.cert.pem()),
                file("key", made.signing_key.serialize_pem()),
            ],
            roots,
        }
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            cert: self.files[0].clone(),
            key: self.files[1].clone(),
        }
    }

    /// Connects and offers these protocols.
    async fn connect(&self, edge: &Running, protocols: &[&str]) -> TlsStream<TcpStream> {
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let socket = TcpStream::connect(edge.address).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, socket);
        within("the TLS handshake", connecting).await.expect("TLS")
    }
}

#[tokio::test]
async fn over_tls_the_client_chooses_between_http_2_and_http_1_1() {
    let certificate = Certificate::new();
    let origin = Origin::start(|seen| async move {
        let scheme = seen.field("x-forwarded-proto").unwrap_or("none");
        json(200, format!("{} by {scheme}", seen.line()))
    })
    .await;
    let edge = edge::start(&[origin.address], |config| {
        config.listen[0].tls = Some(certificate.config());
    })
    .await;

    let stream = certificate.connect(&edge, &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2::over(stream).await;
    let mut request = h2_request("GET", "/v1/info", "");
    *request.uri_mut() = "https://dify.test/v1/info".parse().expect("a target");
    let response = http2::send(&mut sender, request).await;
    assert_eq!(http2::content(response).await, "GET /v1/info by https");

    for protocols in [&["http/1.1"][..], &[]] {
        let stream = certificate.connect(&edge, protocols).await;
        assert_ne!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = Client::over(stream);
        for _ in 0..2 {
            let answer = client.exchange(get("/v1/meta", &[KEY])).await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "GET /v1/meta by https")
            );
        }
    }
}

#[tokio::test]
async fn a_client_in_clear_on_a_tls_port_is_not_served() {
    let certificate = Certificate::new();
    let (origin, edge) = {
        let origin = Origin::start(|_| async { json(200, "{}") }).await;
        let edge = edge::start(&[origin.address], |config| {
            config.listen[0].tls = Some(certificate.config());
        })
        .await;
        (origin, edge)
    };
    let mut client = edge.client().await;
    client.send(get("/v1/info", &[KEY])).await;
    while client.some().await.is_ok() {}
    assert_eq!(origin.counts().requests, 0);
}

#[tokio::test]
async fn answers_of_many_small_chunks_and_of_one_large_piece_come_whole() {
    let pieces: Vec<Vec<u8>> = (0..1000_u32)
        .map(|number| format!("{number},").into_bytes())
        .collect();
    let whole = pieces.concat();
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let expected = large.clone();
    let origin = Origin::start_with(Options::default(), move |seen| {
        let script = if seen.target == "/small" {
            let mut script = vec![chunked(&[])];
            script.extend(pieces.iter().map(chunk));
            script.push(last_chunk());
            script
        } else {
            answer(200, &[], &large)
        };
        async move { script }
    })
    .await;
    let edge = edge::start(&[origin.address], |_| {}).await;
    let small = edge.ask(get("/small", &[])).await;
    assert!(small.body == whole && small.cut.is_none());
    let big = edge.ask(get("/large", &[])).await;
    assert!(big.body == expected && big.cut.is_none());
}

//! `Upgrade`, seen by a client on a raw connection.
//!
//! Nothing but the upstream's 101 may join both sides; until then what the client sends is HTTP.

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

/// A client connection to a server that passes every request to `rig`; what the client sees comes back raw.
fn through(rig: &Arc<Rig>) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 << 10);
    let rig = rig.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let rig = rig.clone();
        async move {
            let request = request.map(|_| Body::Empty);
            rig.send(request).await
        }
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades(),
    );
    client
}

const HANDSHAKE: &[u8] =
    b"GET /socket.io/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn both_sides_are_joined_once_the_upstream_has_agreed() {
    let origin = Origin::start(|mut conn, _| async move {
        let head = conn.head().await.unwrap();
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        conn.say(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        )
        .await;
        assert_eq!(conn.bytes(4).await.unwrap(), b"ping");
        conn.say("pong").await;
    })
    .await;
    let rig = Arc::new(Rig::new(origin.address));
    let mut client = through(&rig);
    client.write_all(HANDSHAKE).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0);
    }
    let head = String::from_utf8_lossy(&seen).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"),
        "{head}"
    );
    assert_eq!(rig.connections("active"), 1);
    client.write_all(b"ping").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"pong");
    drop(client);
    rig.tunnels.close();
    rig.tunnels.wait().await;
    assert_eq!((rig.connections("active"), rig.connections("idle")), (0, 0));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_tunnel_upstream() {
    let (closed, seen) = tokio::sync::oneshot::channel();
    let closed = Mutex::new(Some(closed));
    let origin = Origin::start(move |mut conn, _| {
        let closed = closed.lock().take();
        async move {
            conn.head().await;
            conn.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            conn.until_closed().await;
            closed.unwrap().send(()).unwrap();
        }
    })
    .await;
    let rig = Arc::new(Rig::new(origin.address));
    let mut client = through(&rig);
    client.write_all(HANDSHAKE).await.unwrap();
    assert!(client.read_u8().await.is_ok());
    settle().await;
    drop(client);
    seen.await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_declines_gives_an_ordinary_answer() {
    let origin = Origin::start(|mut conn, _| async move {
        while conn.head().await.is_some() {
            conn.answer("no").await;
        }
    })
    .await;
    let rig = Arc::new(Rig::new(origin.address));
    let mut client = through(&rig);
    // What follows the request is the next request, whatever the client hoped for.
    for _ in 0..2 {
        client.write_all(HANDSHAKE).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\nno") {
            assert!(client.read_buf(&mut seen).await.unwrap() > 0);
        }
        assert!(seen.starts_with(b"HTTP/1.1 200 OK"));
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_failure() {
    let origin = Origin::start(|mut conn, _| async move {
        let head = conn.head().await.unwrap();
        assert!(!head.contains("upgrade"), "{head}");
        conn.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        conn.until_closed().await;
    })
    .await;
    let rig = Rig::new(origin.address);
    let mut request = get("/");
    // Upgrade without Connection, and h2c, are not passed on.
    request
        .headers_mut()
        .insert("upgrade", "websocket".parse().unwrap());
    let failure = rig.fetch(request).await.unwrap_err();
    assert_eq!(failure.kind, crate::types::FailureKind::UpstreamReset);
}

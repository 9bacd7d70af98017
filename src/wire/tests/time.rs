//! What is too slow, and what only looks like it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_too_slowly_gets_408() {
    let mut peer = Rig::new().connect();
    assert_eq!(peer.get("/hello").await.status, 200);
    // Being idle before does not count.
    sleep(Duration::from_secs(60)).await;
    let start = now();
    peer.send("GET /hello HTTP/1.1\r\nHo").await;
    sleep(Duration::from_secs(6)).await;
    peer.send("st: h\r\n").await;
    let (status, message) = peer.refusal().await;
    assert_eq!(status, 408);
    assert!(message.contains("10000 ms"), "{message}");
    assert_eq!((now() - start).as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_first_head_has_no_more_time_than_others() {
    for part in ["P", "PRI * HTTP/2.0\r\n", "GET /hello HTTP/1.1\r\n"] {
        let mut peer = Rig::new().connect();
        let start = now();
        peer.send(part).await;
        let (status, _) = peer.refusal().await;
        // What begins like an HTTP/2 preface and stops is no HTTP/1 request either.
        assert_eq!(status, if part.len() == 16 { 400 } else { 408 }, "{part}");
        assert_eq!((now() - start).as_secs(), 10, "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_without_a_word() {
    let mut peer = Rig::new().connect();
    let start = now();
    assert_eq!(peer.rest().await, "");
    assert_eq!((now() - start).as_secs(), 75);

    let mut peer = Rig::new().connect();
    sleep(Duration::from_secs(70)).await;
    assert_eq!(peer.get("/slow?200").await.body, "slow");
    let start = now();
    assert_eq!(peer.rest().await, "");
    assert_eq!((now() - start).as_secs(), 75);
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_long_pauses_is_not_idle() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    peer.send("GET /stream?300 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.metric("dify_edge_open_streams", &[]), 1.0);
    let body = peer.reply().await.body;
    assert_eq!(body.matches("data: x").count(), 300);
    assert_eq!(rig.metric("dify_edge_open_streams", &[]), 0.0);
    assert_eq!(rig.metric("dify_edge_requests_total", &["2xx"]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_too_slowly_gets_408() {
    for pause in [Duration::from_secs(3600), Duration::from_secs(1)] {
        let mut peer = Rig::new().connect();
        let start = now();
        peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
            .await;
        let (mut reader, mut writer) = tokio::io::split(peer.io);
        let trickle = tokio::spawn(async move {
            loop {
                sleep(pause).await;
                if writer.write_all(b"x").await.is_err() {
                    return;
                }
            }
        });
        let mut text = String::new();
        let mut piece = [0; 1024];
        while !text.contains("status\": 408") {
            let read = reader.read(&mut piece).await.unwrap();
            assert!(read > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(text.contains("slower than 512 bytes a second"), "{text}");
        assert_eq!((now() - start).as_secs(), 10);
        trickle.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_at_the_lowest_rate_may_take_as_long_as_it_needs() {
    let mut peer = Rig::new().connect();
    peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 51200\r\n\r\n")
        .await;
    for _ in 0..20 {
        // Just as fast as it has to be, in pieces that fit into the grace.
        sleep(Duration::from_secs(5)).await;
        peer.send([b'x'; 2560]).await;
    }
    assert_eq!(peer.reply().await.body.len(), 51_200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let rig = Rig::new();
    let mut peer = rig.connect_through(4096);
    peer.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n").await;
    sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.metric("dify_edge_requests_total", &[]), 0.0);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.metric("dify_edge_requests_total", &[]), 1.0);
    assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_closed_and_a_busy_one_is_not() {
    let rig = Rig::new();
    let mut client = rig.connect().h2().await;
    let request = Request::get("http://h/slow?200").body(Body::Empty).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    sleep(Duration::from_secs(74)).await;
    assert!(!client.is_closed());
    sleep(Duration::from_secs(5)).await;
    assert!(client.is_closed());
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 0.0);
}

/// Takes all that is written, as TLS does, and brings none of it to the peer.
struct Stuck {
    io: DuplexStream,
    /// Whether only the close is stuck.
    flushes: bool,
}

impl Transport for Stuck {}

impl AsyncRead for Stuck {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stuck {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushes {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_the_last_bytes_is_cut_off() {
    for flushes in [false, true] {
        let rig = Rig::new();
        let (ours, theirs) = tokio::io::duplex(1024);
        rig.serve(Stuck { io: theirs, flushes });
        let mut peer = Peer::new(ours);
        peer.send("GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await;
        sleep(Duration::from_secs(74)).await;
        assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 1.0, "{flushes}");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 0.0, "{flushes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_put_away_serves_on_as_if_nothing_had_been() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    for target in ["/hello", "/slow?5", "/full?100000"] {
        assert_eq!(rig.metric("dify_edge_connections_at_rest", &[]), 0.0);
        assert_eq!(peer.get(target).await.status, 200);
        assert_eq!(rig.metric("dify_edge_connections_at_rest", &[]), 0.0);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.metric("dify_edge_connections_at_rest", &[]), 1.0, "{target}");
        sleep(Duration::from_secs(18)).await;
        peer.get("/hello").await;
    }
    sleep(Duration::from_secs(20)).await;
    // A head in two parts, the first of which ends the rest.
    peer.send("GET /he").await;
    sleep(Duration::from_secs(5)).await;
    peer.send("llo HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(peer.reply().await.body, "hello");
    // Many at once, one with a body that comes later.
    sleep(Duration::from_secs(20)).await;
    peer.send(
        "GET /hello HTTP/1.1\r\nHost: h\r\n\r\nPOST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n",
    )
    .await;
    assert_eq!(peer.reply().await.body, "hello");
    sleep(Duration::from_secs(5)).await;
    peer.send("abc").await;
    assert_eq!(peer.reply().await.body, "abc");
    // The numbers of requests still agree: this one is refused, and none before it.
    sleep(Duration::from_secs(20)).await;
    peer.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\nBAD\r\n\r\n")
        .await;
    assert_eq!(peer.reply().await.body, "hello");
    assert_eq!(peer.refusal().await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_put_away_ends_in_its_time() {
    let rig = Rig::new();
    let mut idle = rig.connect();
    idle.get("/hello").await;
    let started = now();
    assert_eq!(idle.rest().await, "");
    assert_eq!(started.elapsed().as_secs(), 75, "the idle time");

    let mut slow = rig.connect();
    slow.get("/hello").await;
    sleep(Duration::from_secs(20)).await;
    slow.send("GET /he").await;
    let started = now();
    assert_eq!(slow.refusal().await.0, 408);
    assert_eq!(started.elapsed().as_secs(), 10, "the time of a head");

    let mut left = rig.connect();
    left.get("/hello").await;
    sleep(Duration::from_secs(20)).await;
    drop(left);
    let mut drained = rig.connect();
    drained.get("/hello").await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 1.0);
    rig.shared.drain.cancel();
    assert_eq!(drained.rest().await, "");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h1"]), 0.0);
}

//! HTTP/2: the same rules, the same shape for the stages.

use super::*;

async fn text(response: Response<hyper::body::Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn stages_see_the_same_shape_as_with_http_1() {
    let rig = Rig::new();
    let mut client = rig.connect().h2().await;
    let request = Request::get("http://name:80/head?a=%2f")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Body::Empty)
        .unwrap();
    let body = text(client.send_request(request).await.unwrap()).await;
    let mut lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.remove(0), "GET /head?a=%2f 192.0.2.1");
    lines.sort_unstable();
    assert_eq!(lines, ["cookie: a=1; b=2", "host: name:80"]);
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn limits_and_contradictions_are_refused_like_those_of_http_1() {
    let get = |target: &str| Request::get(format!("http://h{target}"));
    let cases = [
        (get(&format!("/{}", "a".repeat(256))), 414, "256 bytes"),
        (get("/hello").header("a", "b".repeat(1024)), 431, "1024 bytes"),
        (
            (0..21).fold(get("/hello"), |request, at| request.header(format!("a{at}"), "b")),
            431,
            "20 header fields",
        ),
        (get("/hello").header("host", "other"), 400, "`Host` differs"),
        (
            get("/hello").header("host", "h").header("host", "h"),
            400,
            "`Host` is repeated",
        ),
        (
            get("/hello")
                .header("content-length", "0")
                .header("content-length", "0"),
            400,
            "`Content-Length` is repeated",
        ),
        (Request::get("http://u@h/hello"), 400, "`:authority` is not"),
        (get("/hello").method("TRACE"), 501, "TRACE"),
    ];
    let rig = Rig::new();
    let mut client = rig.connect().h2().await;
    for (request, status, part) in cases {
        let request = request.body(Body::Empty).unwrap();
        let shown = format!("{request:?}");
        let response = client.send_request(request).await.expect(&shown);
        assert_eq!(response.status(), status, "{shown}");
        assert!(!response.headers().contains_key("connection"));
        let json: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(json["status"], status);
        assert!(json["message"].as_str().unwrap().contains(part), "{json}");
    }
    // The connection was of use all the time.
    let response = client
        .send_request(get("/hello").body(Body::Empty).unwrap())
        .await;
    assert_eq!(text(response.unwrap()).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn bodies_and_trailers_pass_both_ways() {
    let mut client = Rig::new().connect().h2().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-a", HeaderValue::from_static("b"));
    let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)];
    let request = Request::post("http://h/echo")
        .body(streaming(stream::iter(frames.map(Ok))))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(text(response).await, "abc|x-a=b");
    let request = Request::get("http://h/stream?2").body(Body::Empty).unwrap();
    let response = client.send_request(request).await.unwrap();
    let taken = response.into_body().collect().await.unwrap();
    assert_eq!(taken.trailers().unwrap()["x-checksum"], "42");
    assert_eq!(taken.to_bytes(), "data: x\n\n".repeat(2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_head_has_no_content() {
    let mut client = Rig::new().connect().h2().await;
    let request = Request::head("http://h/hello").body(Body::Empty).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(text(response).await, "");
}

#[tokio::test(start_paused = true)]
async fn content_that_breaks_off_resets_its_stream_and_no_other() {
    let rig = Rig::new();
    let mut client = rig.connect().h2().await;
    let request = Request::get("http://h/fail").body(Body::Empty).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
    let request = Request::get("http://h/hello").body(Body::Empty).unwrap();
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_gets_408() {
    let mut client = Rig::new().connect().h2().await;
    let start = now();
    let request = Request::post("http://h/echo")
        .body(streaming(stream::pending()))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!((now() - start).as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_client_may_say_nothing_for_as_long_as_it_likes() {
    let mut client = Rig::new().connect().h2().await;
    let request = Request::post("http://h/echo")
        .header("content-type", "application/grpc")
        .body(streaming(stream::pending()))
        .unwrap();
    let hour = Duration::from_secs(3600);
    assert!(
        tokio::time::timeout(hour, client.send_request(request))
            .await
            .is_err()
    );
}

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A HEADERS frame that ends head and stream, with every field written out (RFC 7541 section 6.2.2).
fn headers(stream: u32, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "h"),
        (":path", path),
    ];
    let mut block = Vec::new();
    for (name, value) in pseudo.iter().chain(fields) {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(1, 5, stream, &block)
}

const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kind, stream and payload of the frames in `bytes`.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((start, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]) as usize;
        let stream = u32::from_be_bytes([start[5], start[6], start[7], start[8]]);
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        found.push((start[3], stream, payload.to_vec()));
        bytes = rest;
    }
    found
}

const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

#[tokio::test(start_paused = true)]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    let mut bytes = [PREFACE.as_bytes(), &frame(4, 0, 0, &[])].concat();
    for number in 0..64 {
        let stream = 2 * number + 1;
        bytes.extend(headers(stream, "/hello", &[]));
        bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    peer.send(bytes).await;
    let mut answer = Vec::new();
    let _ = peer.io.read_to_end(&mut answer).await;
    let goaway = frames(&answer).into_iter().find(|(kind, ..)| *kind == GOAWAY);
    // ENHANCE_YOUR_CALM
    assert_eq!(goaway.unwrap().2[4..8], 11u32.to_be_bytes());
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn fields_that_could_split_a_message_are_refused() {
    for field in [
        ("a", "b\r\nc: d"),
        ("a", "b\0"),
        ("a b", "c"),
        ("a\r\n", "c"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
    ] {
        let rig = Rig::new();
        let mut peer = rig.connect();
        peer.send(
            [
                PREFACE.as_bytes(),
                &frame(4, 0, 0, &[]),
                &headers(1, "/hello", &[field]),
            ]
            .concat(),
        )
        .await;
        let refused = peer
            .until(|bytes| {
                let found = frames(bytes);
                let end = found
                    .iter()
                    .find(|(kind, ..)| matches!(*kind, RST_STREAM | GOAWAY));
                end.map(|(kind, ..)| (0, *kind))
            })
            .await;
        assert!(matches!(refused, RST_STREAM | GOAWAY), "{field:?}");
        assert_eq!(rig.metric("dify_edge_requests_total", &[]), 0.0, "{field:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off() {
    let rig = Rig::new();
    let mut peer = rig.connect_through(4096);
    // Windows that never close, so that it is the connection that is full.
    let windows = [
        frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
        frame(8, 0, 0, &0x7000_0000_u32.to_be_bytes()),
    ];
    let request = headers(1, "/big", &[]);
    peer.send([PREFACE.as_bytes(), &windows.concat(), &request].concat())
        .await;
    sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 1.0);
    sleep(Duration::from_secs(8)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_is_reset_and_the_connection_goes_on() {
    for path in ["/big", "/full?8000000"] {
        let rig = Rig::new();
        let mut client = rig.connect().h2().await;
        let get = |path: &str| Request::get(format!("http://h{path}")).body(Body::Empty).unwrap();
        let unread = client.send_request(get(path)).await.unwrap();
        sleep(Duration::from_secs(74)).await;
        assert_eq!(rig.metric("dify_edge_requests_total", &[]), 0.0, "{path}");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.metric("dify_edge_requests_total", &[]), 1.0, "{path}");
        assert_eq!(
            text(client.send_request(get("/hello")).await.unwrap()).await,
            "hello"
        );
        assert!(unread.into_body().collect().await.is_err(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_little_at_a_time_is_served_until_it_stops() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    let more = 16_384_u32.to_be_bytes();
    let window = [&[0, 4], &more[..]].concat();
    let request = headers(1, "/big", &[]);
    peer.send([PREFACE.as_bytes(), &frame(4, 0, 0, &window), &request].concat())
        .await;
    let mut taken = 0;
    let mut reset = None;
    for second in (5..1300).step_by(5) {
        sleep(Duration::from_secs(5)).await;
        let mut here = vec![0; 1 << 20];
        let read = futures_util::FutureExt::now_or_never(peer.io.read(&mut here));
        here.truncate(read.map_or(0, Result::unwrap));
        for (kind, stream, payload) in frames(&here) {
            match kind {
                0 => taken += payload.len(),
                PING => peer.send(frame(PING, 1, 0, &payload)).await,
                RST_STREAM => reset = Some((stream, payload, second)),
                _ => {}
            }
        }
        if second % 60 == 0 && second <= 1200 {
            peer.send([frame(8, 0, 0, &more), frame(8, 0, 1, &more)].concat())
                .await;
        }
    }
    assert_eq!(taken, 21 * 16_384);
    // CANCEL
    assert_eq!(reset, Some((1, 8_u32.to_be_bytes().to_vec(), 1280)));
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_answer_that_nobody_takes_ends_the_idle_connection() {
    let rig = Rig::new();
    let (mut client, connection) =
        hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .initial_stream_window_size(100)
            .handshake(TokioIo::new(rig.connect().io))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://h/full?10000").body(Body::Empty).unwrap();
    let _unread = client.send_request(request).await.unwrap();
    sleep(Duration::from_secs(149)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 1.0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.metric("dify_edge_connections", &["h2"]), 0.0);
}

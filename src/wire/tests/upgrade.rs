//! Another protocol, once both sides want it.

use hyper::upgrade::OnUpgrade;

use super::*;

/// Agrees to an upgrade after a second, and then sends back what comes.
pub(super) fn agree(mut parts: http::request::Parts) -> Result<Response<Body>, Failure> {
    let mut response = Response::new(Body::Empty);
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Ok(Response::new(Body::Full("no upgrade".into())));
    };
    if parts.uri.query() == Some("refuse") {
        return Ok(Response::new(Body::Full("refused".into())));
    }
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut bytes = [0; 1024];
        while let Ok(read @ 1..) = io.read(&mut bytes).await {
            io.write_all(&bytes[..read]).await.unwrap();
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(response)
}

fn request(target: &str, protocol: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

#[tokio::test(start_paused = true)]
async fn after_an_agreed_upgrade_bytes_pass_unjudged_and_untimed() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    // The first bytes of the other protocol come before the answer.
    let text = format!("{}\0early\n", request("/upgrade", "WebSocket"));
    peer.send(text).await;
    let head = peer.head().await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("Upgrade: websocket\r\n"),
        "{head}"
    );
    for _ in 0..3 {
        peer.send("GET / HTTP/1.1\r\nHost : x\r\n\r\n").await;
        sleep(Duration::from_secs(1000)).await;
    }
    let wanted = format!("\0early\n{}", "GET / HTTP/1.1\r\nHost : x\r\n\r\n".repeat(3));
    let echoed = peer
        .until(|bytes| (bytes.len() >= wanted.len()).then(|| (bytes.len(), bytes.to_vec())))
        .await;
    assert_eq!(String::from_utf8(echoed).unwrap(), wanted);
    rig.shared.stop.cancel();
    assert_eq!(peer.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn without_agreement_what_follows_is_the_next_request_and_judged() {
    let mut peer = Rig::new().connect();
    let next = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n";
    let bad = "GET /hello HTTP/1.1\r\nHost : h\r\n\r\n";
    peer.send(format!("{}{next}{bad}", request("/upgrade?refuse", "websocket")))
        .await;
    assert_eq!(peer.reply().await.body, "refused");
    assert_eq!(peer.reply().await.body, "hello");
    assert_eq!(peer.refusal().await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn a_later_request_is_served_after_an_upgrade_that_was_not_agreed_to() {
    let mut peer = Rig::new().connect();
    peer.send(request("/upgrade?refuse", "websocket")).await;
    assert_eq!(peer.reply().await.body, "refused");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(peer.get("/hello").await.body, "hello");
    peer.send("POST /echo HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody")
        .await;
    assert_eq!(peer.reply().await.body, "body");
    assert_eq!(peer.get("/hello").await.body, "hello");
}

#[tokio::test(start_paused = true)]
async fn other_protocols_than_websocket_are_not_offered_to_the_upstream() {
    let mut peer = Rig::new().connect();
    peer.send(request("/upgrade", "h2c")).await;
    assert_eq!(peer.reply().await.body, "no upgrade");
    peer.send(request("/head", "h2c")).await;
    let body = peer.reply().await.body;
    assert!(!body.contains("upgrade: h2c"), "{body}");
    assert_eq!(peer.get("/hello").await.body, "hello");
}

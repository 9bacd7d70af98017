//! Which connection a request goes on, and which are kept.
//!
//! Origins here close without a word, say more than they announced, or refuse. No request may fail for it,
//! and no write may arrive twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::types::FailureKind;

/// Serves requests until the connection ends, and answers each with its target.
async fn serve_well(mut conn: Conn) {
    while let Some((head, _)) = conn.request().await {
        let target = head.split(' ').nth(1).unwrap().to_owned();
        conn.answer(&target).await;
    }
}

#[tokio::test]
async fn safe_requests_share_a_connection() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let rig = Rig::new(origin.address);
    for n in 0..5 {
        let path = format!("/v1/info?n={n}");
        assert_eq!(rig.fetch(get(&path)).await.unwrap(), (200, path.into()));
        settle().await;
    }
    assert_eq!(origin.accepted(), 1);
    assert_eq!((rig.connections("idle"), rig.connections("active")), (1, 0));
}

#[tokio::test]
async fn a_write_goes_on_a_new_connection_which_then_serves_reads() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let rig = Rig::new(origin.address);
    rig.fetch(get("/a")).await.unwrap();
    rig.fetch(post("/b", "{}")).await.unwrap();
    settle().await;
    assert_eq!((origin.accepted(), rig.connections("idle")), (2, 2));
    rig.fetch(get("/c")).await.unwrap();
    rig.fetch(get("/d")).await.unwrap();
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn the_request_target_arrives_byte_for_byte() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let rig = Rig::new(origin.address);
    for target in [
        "/v1//%7Euser/%2f;x/../.?b=2&a=%20+1&&a",
        "/?",
        "/%e4%b8%ad?q=%",
        "/a?b?c",
    ] {
        assert_eq!(rig.fetch(get(target)).await.unwrap().1, target);
    }
    let absolute = get("http://dify.example/v1/info?x=%41");
    assert_eq!(rig.fetch(absolute).await.unwrap().1, "/v1/info?x=%41");
}

/// Origin that answers every `kth` request of a connection and then closes without having said so, and that
/// closes at rest after `rest` milliseconds.
async fn moody_origin(kth: usize, rest: u64, posts: Arc<Mutex<HashMap<String, usize>>>) -> Origin {
    Origin::start(move |mut conn, _| {
        let posts = posts.clone();
        async move {
            for n in 0..kth {
                // Only a connection that has served is at rest.
                let patience = if n == 0 { 60_000 } else { rest };
                let request = tokio::time::timeout(Duration::from_millis(patience), conn.request());
                let Ok(Some((head, content))) = request.await else {
                    return;
                };
                if head.starts_with("POST") {
                    *posts.lock().entry(content.clone()).or_default() += 1;
                }
                conn.answer(if head.starts_with("POST") {
                    &content
                } else {
                    "read"
                })
                .await;
            }
        }
    })
    .await
}

async fn mixed_load(rig: &Arc<Rig>, workers: usize, each: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..workers {
        let rig = rig.clone();
        tasks.spawn(async move {
            for n in 0..each {
                let id = format!("{worker}-{n}");
                if n % 3 == 0 {
                    let content = Bytes::from(id.clone());
                    let request = Request::post("/v1/write")
                        .header("content-length", content.len())
                        .body(Body::from(content))
                        .unwrap();
                    assert_eq!(rig.fetch(request).await.unwrap(), (200, id.into()));
                } else {
                    assert_eq!(rig.fetch(get("/v1/info")).await.unwrap(), (200, "read".into()));
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_closes_after_every_kth_answer_never_fails_a_request() {
    for (kth, rest) in [(1, 1000), (3, 1000), (7, 3)] {
        let posts = Arc::new(Mutex::new(HashMap::new()));
        let origin = moody_origin(kth, rest, posts.clone()).await;
        let rig = Arc::new(Rig::new(origin.address));
        mixed_load(&rig, 16, 120).await;
        let posts = posts.lock();
        assert_eq!(posts.len(), 16 * 40);
        assert!(posts.values().all(|count| *count == 1), "a write arrived twice");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_dies_under_a_read_is_replaced_once_and_silently() {
    let origin = Origin::start(|mut conn, number| async move {
        conn.request().await;
        conn.answer("first").await;
        if number == 0 {
            // Reads the second request and goes away without a word.
            conn.request().await;
            return;
        }
        serve_well(conn).await;
    })
    .await;
    let rig = Rig::new(origin.address);
    rig.fetch(get("/")).await.unwrap();
    settle().await;
    assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "first".into()));
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn a_new_connection_that_dies_before_the_head_is_a_reset_with_the_request_sent() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
    })
    .await;
    let rig = Rig::new(origin.address);
    for request in [get("/"), post("/", "{}")] {
        let failure = rig.fetch(request).await.unwrap_err();
        assert_eq!((failure.kind, failure.sent), (FailureKind::UpstreamReset, true));
    }
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_reset() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say("SSH-2.0-OpenSSH\r\n\r\n").await;
    })
    .await;
    let failure = Rig::new(origin.address).fetch(get("/")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::UpstreamReset);
    assert!(failure.detail.contains("not HTTP"));
}

#[tokio::test]
async fn nothing_listening_is_a_connect_failure_with_nothing_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let rig = Rig::new(address);
    let dispatch = rig.dispatch(post("/", "{}"));
    let body = dispatch.body.clone();
    let failure = rig.upstream.clone().call(dispatch).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectFailed, false));
    assert!(body.is_available());
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let dead = std::net::TcpListener::bind("127.0.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let rig = Rig::new(origin.address);
    rig.endpoint.set_addresses(vec![dead, origin.address]);
    assert_eq!(rig.fetch(post("/x", "{}")).await.unwrap().0, 200);
}

#[tokio::test]
async fn an_answer_that_says_close_or_ends_with_the_connection_is_not_pooled() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
    ] {
        let until_close = !answer.contains("Content-Length");
        let origin = Origin::start(move |mut conn, _| async move {
            conn.request().await;
            conn.say(answer).await;
            if !until_close {
                conn.until_closed().await;
            }
        })
        .await;
        let rig = Rig::new(origin.address);
        assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "ok".into()), "{answer}");
        assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "ok".into()), "{answer}");
        assert_eq!(origin.accepted(), 2, "{answer}");
    }
}

#[tokio::test]
async fn bytes_beyond_the_content_length_never_become_an_answer() {
    let origin = Origin::start(|mut conn, _| async move {
        while conn.request().await.is_some() {
            conn.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
                .await;
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    for n in 1..=4 {
        assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "ok".into()));
        settle().await;
        assert_eq!(origin.accepted(), n);
    }
}

#[tokio::test]
async fn late_bytes_on_a_connection_at_rest_never_become_an_answer() {
    let (poison, poisoned) = oneshot::channel();
    let poisoned = Mutex::new(Some(poisoned));
    let origin = Origin::start(move |mut conn, _| {
        let poisoned = poisoned.lock().take();
        async move {
            conn.request().await;
            conn.answer("ok").await;
            if let Some(poisoned) = poisoned {
                poisoned.await.unwrap();
                conn.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
            }
            serve_well(conn).await;
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    rig.fetch(get("/")).await.unwrap();
    poison.send(()).unwrap();
    settle().await;
    assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "ok".into()));
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn connections_at_rest_and_in_use_stay_within_the_slots() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let mut config = config(format!("http://{}", origin.address));
    config.connections.limit = 4;
    config.connections.pool_share = crate::types::units::Ratio(0.5);
    let rig = Rig::with(config, None);
    for _ in 0..10 {
        let one = rig.send(post("/", "{}")).await.unwrap();
        let other = rig.send(post("/", "{}")).await.unwrap();
        assert!(rig.connections("idle") + rig.connections("active") <= 2);
        for response in [one, other] {
            response.into_body().collect().await.unwrap();
        }
        settle().await;
        assert_eq!((rig.connections("idle"), rig.connections("active")), (2, 0));
    }
    assert_eq!(origin.accepted(), 20);
}

#[tokio::test]
async fn a_connection_at_rest_is_closed_after_the_idle_timeout() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let origin = Origin::start(move |conn, _| {
        let count = count.clone();
        async move {
            serve_well(conn).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut config = config(format!("http://{}", origin.address));
    config.connections.idle_timeout = span(10_000);
    let rig = Rig::with(config, None);
    let token = tokio_util::sync::CancellationToken::new();
    let tracker = TaskTracker::new();
    rig.upstream.spawn_background(token.clone(), &tracker);
    rig.fetch(get("/")).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(9)).await;
    settle().await;
    assert_eq!(closed.load(Ordering::SeqCst), 0);
    tokio::time::advance(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!((closed.load(Ordering::SeqCst), rig.connections("idle")), (1, 0));
    token.cancel();
    tracker.close();
    tracker.wait().await;
}

#[tokio::test]
async fn a_connection_to_an_address_that_is_gone_is_not_used_again() {
    let old = Origin::start(|conn, _| serve_well(conn)).await;
    let new = Origin::start(|conn, _| serve_well(conn)).await;
    let rig = Rig::new(old.address);
    rig.fetch(get("/")).await.unwrap();
    settle().await;
    rig.endpoint.set_addresses(vec![new.address]);
    rig.fetch(get("/")).await.unwrap();
    assert_eq!((old.accepted(), new.accepted()), (1, 1));
    assert_eq!(rig.connections("idle"), 1);
}

#[tokio::test]
async fn a_probe_has_a_connection_of_its_own_that_is_closed_afterwards() {
    let origin = Origin::start(|conn, _| serve_well(conn)).await;
    let rig = Rig::new(origin.address);
    for n in 1..=2 {
        let mut probe = rig.dispatch(get("/health"));
        probe.slot = None;
        let response = rig.upstream.clone().call(probe).await.unwrap();
        response.into_body().collect().await.unwrap();
        assert_eq!((origin.accepted(), rig.connections("idle")), (n, 0));
    }
}

#[tokio::test]
async fn reason_phrases_pass_and_phases_are_told() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say("HTTP/1.1 404 NOT FOUND\r\nContent-Length: 0\r\nKeep-Alive: timeout=2\r\n\r\n")
            .await;
        conn.until_closed().await;
    })
    .await;
    let response = Rig::new(origin.address).send(get("/")).await.unwrap();
    let reason = response.extensions().get::<hyper::ext::ReasonPhrase>().unwrap();
    assert_eq!(reason.as_bytes(), b"NOT FOUND");
    let phases = response
        .extensions()
        .get::<crate::types::outcome::Phases>()
        .unwrap();
    assert!(phases.connect > Duration::ZERO && phases.first_byte > Duration::ZERO);
    assert!(!response.headers().contains_key("keep-alive"));
    assert_eq!(response.headers()["via"], "1.1 dify-edge");
}

#[tokio::test]
async fn answers_to_head_and_304_have_no_body_and_keep_the_connection() {
    let origin = Origin::start(|mut conn, _| async move {
        while let Some(head) = conn.head().await {
            if head.starts_with("HEAD") {
                conn.say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n").await;
            } else {
                conn.say("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n").await;
            }
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    for _ in 0..2 {
        let head = Request::head("/").body(Body::Empty).unwrap();
        let response = rig.send(head).await.unwrap();
        assert_eq!(response.headers()["content-length"], "99");
        assert!(response.body().is_empty());
        settle().await;
        assert_eq!(rig.send(get("/")).await.unwrap().status(), 304);
        settle().await;
    }
    assert_eq!(origin.accepted(), 1);
}

//! Bodies in both directions: pace, time limits, and ends that are no ends.
//!
//! Where a time limit is proved, time is paused: the runtime then jumps to the limit as soon as nothing else
//! is left to do.

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::types::FailureKind;

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

async fn next(body: &mut Body) -> Option<Result<Bytes, Failure>> {
    body.frame()
        .await
        .map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

#[tokio::test]
async fn events_pass_one_by_one_without_delay() {
    let (release, released) = mpsc::channel::<()>(1);
    let released = parking_lot::Mutex::new(Some(released));
    let origin = Origin::start(move |mut conn, _| {
        let released = released.lock().take();
        async move {
            let mut released = released.unwrap();
            conn.request().await;
            conn.say(CHUNKED).await;
            for n in 0..20 {
                let event = format!("event: ping\ndata: {n}\n\n");
                conn.say(&format!("{:x}\r\n{event}\r\n", event.len())).await;
                // The next event is not sent before the test has read this one.
                released.recv().await.unwrap();
            }
            conn.say("0\r\n\r\n").await;
            conn.until_closed().await;
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    let mut body = rig
        .send(post("/v1/chat-messages", "{}"))
        .await
        .unwrap()
        .into_body();
    for n in 0..20 {
        let event = next(&mut body).await.unwrap().unwrap();
        assert_eq!(event, format!("event: ping\ndata: {n}\n\n"));
        release.send(()).await.unwrap();
    }
    assert!(next(&mut body).await.is_none());
    settle().await;
    assert_eq!(rig.connections("idle"), 1);
}

#[tokio::test]
async fn dropping_the_answer_ends_the_upstreams_work_at_once() {
    let (closed, seen) = oneshot::channel();
    let closed = parking_lot::Mutex::new(Some(closed));
    let origin = Origin::start(move |mut conn, _| {
        let closed = closed.lock().take();
        async move {
            conn.request().await;
            conn.say(CHUNKED).await;
            conn.say("5\r\nhello\r\n").await;
            conn.until_closed().await;
            closed.unwrap().send(()).unwrap();
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    let mut body = rig.send(get("/")).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "hello");
    assert_eq!(rig.connections("active"), 1);
    drop(body);
    seen.await.unwrap();
    assert_eq!((rig.connections("idle"), rig.connections("active")), (0, 0));
}

#[tokio::test]
async fn dropping_the_request_before_its_answer_ends_the_upstreams_work_at_once() {
    let (arrived, here) = oneshot::channel();
    let (closed, seen) = oneshot::channel();
    let signals = parking_lot::Mutex::new(Some((arrived, closed)));
    let origin = Origin::start(move |mut conn, _| {
        let signals = signals.lock().take();
        async move {
            let (arrived, closed) = signals.unwrap();
            conn.request().await;
            arrived.send(()).unwrap();
            conn.until_closed().await;
            closed.send(()).unwrap();
        }
    })
    .await;
    let rig = Rig::new(origin.address);
    tokio::select! {
        _ = rig.send(post("/v1/chat-messages", "{}")) => panic!("there is no answer"),
        here = here => here.unwrap(),
    }
    seen.await.unwrap();
    assert_eq!(rig.connections("active"), 0);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_an_error_and_never_a_clean_end() {
    for (answer, reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            false,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\n\r\nhello", true),
    ] {
        let (read, was_read) = oneshot::channel::<()>();
        let was_read = parking_lot::Mutex::new(Some(was_read));
        let origin = Origin::start(move |mut conn, _| {
            let was_read = was_read.lock().take();
            async move {
                conn.request().await;
                conn.say(answer).await;
                was_read.unwrap().await.unwrap();
                if reset {
                    conn.reset();
                }
            }
        })
        .await;
        let rig = Rig::new(origin.address);
        let mut body = rig.send(get("/")).await.unwrap().into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "hello", "{answer}");
        read.send(()).unwrap();
        let failure = next(&mut body).await.expect("an error, not an end").unwrap_err();
        assert_eq!(
            (failure.kind, failure.sent),
            (FailureKind::UpstreamReset, true),
            "{answer}"
        );
        assert_eq!(rig.connections("idle"), 0);
    }
}

#[tokio::test]
async fn uploads_stream_with_back_pressure() {
    let (gate, open) = oneshot::channel::<()>();
    let open = parking_lot::Mutex::new(Some(open));
    let origin = Origin::start(move |mut conn, _| {
        let open = open.lock().take();
        async move {
            let head = conn.head().await.unwrap();
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            open.unwrap().await.unwrap();
            conn.until_last_chunk().await;
            conn.answer("stored").await;
        }
    })
    .await;
    let rig = Arc::new(Rig::new(origin.address));
    let (feed, body) = fed_body();
    let request = Request::post("/v1/files/upload").body(body).unwrap();
    let sending = tokio::spawn({
        let rig = rig.clone();
        async move { rig.fetch(request).await }
    });
    let block = Bytes::from(vec![b'x'; 64 << 10]);
    let mut taken = 0;
    // While the origin reads nothing, only what fits into the sockets is taken from the client.
    loop {
        settle().await;
        if feed.try_send(Ok(block.clone())).is_err() {
            settle().await;
            if feed.try_send(Ok(block.clone())).is_err() {
                break;
            }
        }
        taken += block.len();
        assert!(taken < 64 << 20, "the body is buffered without bound");
    }
    gate.send(()).unwrap();
    for _ in 0..16 {
        feed.send(Ok(block.clone())).await.unwrap();
    }
    drop(feed);
    assert_eq!(sending.await.unwrap().unwrap(), (200, "stored".into()));
}

#[tokio::test]
async fn a_failure_of_the_request_body_comes_back_as_itself() {
    for kind in [
        FailureKind::BodyTooLarge,
        FailureKind::RequestTimeout,
        FailureKind::ClientGone,
    ] {
        let origin = Origin::start(|mut conn, _| async move { conn.until_closed().await }).await;
        let rig = Rig::new(origin.address);
        let (feed, body) = fed_body();
        let request = Request::post("/")
            .header("content-length", 10)
            .body(body)
            .unwrap();
        let feeding = async {
            feed.send(Ok(Bytes::from_static(b"hello"))).await.unwrap();
            feed.send(Err(Failure::new(kind, "said by the wire")))
                .await
                .unwrap();
        };
        let (result, ()) = tokio::join!(rig.fetch(request), feeding);
        let failure = result.unwrap_err();
        assert_eq!((failure.kind, failure.sent), (kind, true));
        assert_eq!(failure.detail, "said by the wire");
    }
}

#[tokio::test]
async fn an_early_answer_is_passed_on_and_its_connection_closed() {
    for closes in [false, true] {
        let origin = Origin::start(move |mut conn, _| async move {
            conn.head().await;
            conn.say("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
                .await;
            if !closes {
                conn.until_closed().await;
            }
        })
        .await;
        let rig = Rig::new(origin.address);
        let (feed, body) = fed_body();
        let feeding = tokio::spawn(async move {
            let block = Bytes::from(vec![b'x'; 64 << 10]);
            while feed.send(Ok(block.clone())).await.is_ok() {}
        });
        let request = Request::post("/")
            .header("content-length", 1 << 30)
            .body(body)
            .unwrap();
        assert_eq!(
            rig.fetch(request).await.unwrap(),
            (413, "too large".into()),
            "{closes}"
        );
        // The rest of the body is given up.
        feeding.await.unwrap();
        assert_eq!(rig.connections("idle"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_survives_the_reset_that_follows_it() {
    let origin = Origin::start(move |mut conn, _| async move {
        conn.head().await;
        conn.say("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            .await;
        // Closed with unread bytes: the kernel answers what still comes with a reset.
    })
    .await;
    let rig = Arc::new(Rig::new(origin.address));
    for _ in 0..50 {
        let (feed, body) = fed_body();
        let feeding = tokio::spawn(async move {
            let block = Bytes::from(vec![b'x'; 256 << 10]);
            while feed.send(Ok(block.clone())).await.is_ok() {}
        });
        let request = Request::post("/")
            .header("content-length", 1 << 30)
            .body(body)
            .unwrap();
        assert_eq!(rig.fetch(request).await.unwrap(), (413, "too large".into()));
        feeding.await.unwrap();
    }
}

#[tokio::test]
async fn the_deadline_covers_the_wait_for_the_head() {
    let origin = Origin::start(|mut conn, _| async move { conn.until_closed().await }).await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(Some(5), Some(300));
    tokio::time::pause();
    let start = Clock::System.now().monotonic;
    let failure = rig.fetch(post("/", "{}")).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::UpstreamTimeout, true));
    let took = Clock::System.now().monotonic - start;
    assert!(
        (Duration::from_secs(5)..Duration::from_millis(5100)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_for_the_deadline_is_not_the_upstreams_fault() {
    let origin = Origin::start(|mut conn, _| async move { conn.until_closed().await }).await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(Some(5), Some(300));
    tokio::time::pause();
    let (feed, body) = fed_body();
    feed.send(Ok("beginning".into())).await.unwrap();
    let failure = rig
        .fetch(Request::post("/").body(body).unwrap())
        .await
        .unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::RequestTimeout, true));
}

#[tokio::test]
async fn the_deadline_covers_the_body_however_lively_it_is() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say(CHUNKED).await;
        loop {
            conn.say("5\r\nhello\r\n").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(Some(5), Some(3));
    tokio::time::pause();
    let mut body = rig.send(get("/")).await.unwrap().into_body();
    let mut events = 0;
    let failure = loop {
        match next(&mut body).await.unwrap() {
            Ok(_) => events += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!((failure.kind, failure.sent), (FailureKind::UpstreamTimeout, true));
    assert!((4..=6).contains(&events), "{events}");
}

#[tokio::test]
async fn a_stream_may_last_as_long_as_it_does_not_stand_still() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say(CHUNKED).await;
        for _ in 0..10 {
            conn.say("5\r\nhello\r\n").await;
            tokio::time::sleep(Duration::from_secs(200)).await;
        }
        conn.until_closed().await;
    })
    .await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(None, Some(300));
    tokio::time::pause();
    let mut body = rig.send(get("/")).await.unwrap().into_body();
    for _ in 0..10 {
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "hello");
    }
    let start = Clock::System.now().monotonic;
    let failure = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::UpstreamTimeout);
    assert!(Clock::System.now().monotonic - start >= Duration::from_secs(300));
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_taken_for_a_silent_upstream() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say(CHUNKED).await;
        conn.say("5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n").await;
        conn.until_closed().await;
    })
    .await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(None, Some(300));
    let mut body = rig.send(get("/")).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1000)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "world");
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn a_slow_upload_is_not_taken_for_a_silent_upstream() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.answer("stored").await;
    })
    .await;
    let mut rig = Rig::new(origin.address);
    rig.timeouts = short_timeouts(None, Some(10));
    tokio::time::pause();
    let (feed, body) = fed_body();
    let request = Request::post("/").header("content-length", 5).body(body).unwrap();
    let feeding = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            feed.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        }
    };
    let (result, ()) = tokio::join!(rig.fetch(request), feeding);
    assert_eq!(result.unwrap(), (200, "stored".into()));
}

#[tokio::test]
async fn a_connect_that_hangs_ends_with_its_own_time_limit() {
    // A listener whose backlog is full swallows further connects.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    for _ in 0..8 {
        let filler = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50));
        match filler {
            Ok(filler) => fillers.push(filler),
            Err(_) => break,
        }
    }
    let rig = Rig::new(address);
    tokio::time::pause();
    let failure = rig.fetch(post("/", "{}")).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectTimeout, false));
}

#[tokio::test]
async fn trailers_of_an_answer_pass() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.request().await;
        conn.say("HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
            .await;
        conn.until_closed().await;
    })
    .await;
    let rig = Rig::new(origin.address);
    let response = rig.send(get("/")).await.unwrap();
    assert_eq!(response.headers()["trailer"], "x-sum");
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "7");
    settle().await;
    assert_eq!(rig.connections("idle"), 1);
}

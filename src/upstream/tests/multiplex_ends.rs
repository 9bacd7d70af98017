//! HTTP/2: how exchanges end, and what may be sent twice.
//!
//! A request that the replica did not begin is sent again, whatever it is; one that it may have begun never is. An
//! exchange that ends takes no other with it.

use h2::Reason;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::multiplex::{answer, h2c, origin, read, shake_hands};
use super::*;
use crate::types::FailureKind;

#[tokio::test]
async fn a_write_that_was_refused_is_sent_again_with_its_body() {
    let seen = Arc::new(Mutex::new(0));
    let count = seen.clone();
    let origin = origin(100, move |(request, mut respond)| {
        let count = count.clone();
        async move {
            let body = request.into_body();
            *count.lock() += 1;
            if *count.lock() < 3 {
                respond.send_reset(Reason::REFUSED_STREAM);
                return;
            }
            answer(respond, &read(body).await.unwrap());
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    assert_eq!(rig.fetch(post("/", "{}")).await.unwrap(), (200, "{}".into()));
    assert_eq!(*seen.lock(), 3);
    // Who refuses all is told so; nothing was done.
    *seen.lock() = -10;
    let failure = rig.fetch(post("/", "{}")).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::UpstreamReset, false));
    assert_eq!(*seen.lock(), -7);
}

#[tokio::test]
async fn a_write_that_may_have_been_read_is_not_sent_again() {
    for reason in [Some(Reason::INTERNAL_ERROR), None] {
        let (come, mut came) = mpsc::unbounded_channel();
        let origin = Origin::start(move |conn, _| {
            let come = come.clone();
            async move {
                let mut connection = shake_hands(conn, 100).await;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    come.send(()).unwrap();
                    match reason {
                        Some(reason) => respond.send_reset(reason),
                        // The connection is closed without a word.
                        None => return,
                    }
                }
            }
        })
        .await;
        let rig = h2c(origin.address, |_| {});
        let failure = rig.fetch(post("/", "{}")).await.unwrap_err();
        assert_eq!((failure.kind, failure.sent), (FailureKind::UpstreamReset, true));
        assert!(came.try_recv().is_ok() && came.try_recv().is_err());
        // The next one is served by whatever connection there is.
        assert!(rig.fetch(post("/", "{}")).await.is_err());
        assert!(came.recv().await.is_some());
        assert_eq!(origin.accepted(), if reason.is_some() { 1 } else { 2 });
    }
}

#[tokio::test]
async fn a_connection_that_goes_away_ends_what_it_has_and_gets_nothing_new() {
    let (leave, left) = oneshot::channel::<()>();
    let (finish, finished) = oneshot::channel::<()>();
    let first = Arc::new(Mutex::new(Some((left, finished))));
    let origin = Origin::start(move |conn, _| {
        let first = first.lock().take();
        async move {
            let mut connection = shake_hands(conn, 100).await;
            let Some((left, finished)) = first else {
                while let Some(Ok((_, respond))) = connection.accept().await {
                    answer(respond, b"second");
                }
                return;
            };
            let (_, respond) = connection.accept().await.unwrap().unwrap();
            tokio::spawn(async move {
                finished.await.unwrap();
                answer(respond, b"first");
            });
            tokio::select! {
                _ = left => connection.graceful_shutdown(),
                _ = connection.accept() => unreachable!(),
            }
            // What comes before the news have arrived is served, as every server does.
            while let Some(Ok((_, respond))) = connection.accept().await {
                answer(respond, b"second");
            }
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let mut early = tokio::spawn({
        let rig = rig.clone();
        async move { rig.fetch(post("/", "1")).await }
    });
    while rig.upstream_streams() == 0 {
        tokio::task::yield_now().await;
    }
    settle().await;
    leave.send(()).unwrap();
    // Whether the news have arrived or not: nothing is lost.
    for _ in 0..20 {
        assert_eq!(rig.fetch(post("/", "2")).await.unwrap(), (200, "second".into()));
        settle().await;
    }
    assert!(futures_util::FutureExt::now_or_never(&mut early).is_none());
    finish.send(()).unwrap();
    assert_eq!(early.await.unwrap().unwrap(), (200, "first".into()));
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn dropping_an_answer_resets_its_stream_and_no_other() {
    let (told, mut reset) = mpsc::unbounded_channel();
    let origin = origin(100, move |(request, mut respond)| {
        let told = told.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data("hello".into(), false).unwrap();
            // Held, or the library would end it.
            let _body = request.into_body();
            let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            told.send(reason.unwrap()).unwrap();
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let (_feed, body) = fed_body();
    let mut open = rig
        .send(Request::post("/").body(body).unwrap())
        .await
        .unwrap()
        .into_body();
    let mut other = rig.send(get("/")).await.unwrap().into_body();
    for body in [&mut open, &mut other] {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    }
    drop(open);
    assert_eq!(reset.recv().await.unwrap(), Reason::CANCEL);
    settle().await;
    assert!(reset.try_recv().is_err());
    assert_eq!((rig.connections("active"), rig.upstream_streams()), (1, 1));
    drop(other);
    assert_eq!(reset.recv().await.unwrap(), Reason::CANCEL);
    assert_eq!((rig.connections("idle"), origin.accepted()), (1, 1));
}

#[tokio::test]
async fn a_request_that_is_given_up_before_its_answer_resets_its_stream() {
    let (told, mut reset) = mpsc::unbounded_channel();
    let origin = origin(100, move |(request, mut respond)| {
        let told = told.clone();
        async move {
            let _body = request.into_body();
            told.send(None).unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            told.send(Some(reason.unwrap())).unwrap();
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let (_feed, body) = fed_body();
    let asking = tokio::spawn({
        let rig = rig.clone();
        async move { rig.send(Request::post("/").body(body).unwrap()).await }
    });
    assert_eq!(reset.recv().await.unwrap(), None);
    asking.abort();
    assert_eq!(reset.recv().await.unwrap(), Some(Reason::CANCEL));
    assert_eq!(rig.upstream_streams(), 0);
}

#[tokio::test]
async fn an_answer_that_is_reset_is_no_end_even_if_that_is_no_error() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let origin = origin(100, move |(_, mut respond)| async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data("half".into(), false).unwrap();
            settle().await;
            stream.send_reset(reason);
        })
        .await;
        let rig = h2c(origin.address, |_| {});
        let failure = rig.fetch(get("/")).await.unwrap_err();
        assert_eq!(
            (failure.kind, failure.sent),
            (FailureKind::UpstreamReset, true),
            "{reason:?}"
        );
        assert_eq!(rig.connections("idle"), 1);
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_resets_its_stream_and_is_the_one_to_blame() {
    let (told, mut ended) = mpsc::unbounded_channel();
    let origin = origin(100, move |(request, respond)| {
        let told = told.clone();
        async move {
            told.send(read(request.into_body()).await).unwrap();
            drop(respond);
        }
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let (feed, body) = fed_body();
    let asking = tokio::spawn({
        let rig = rig.clone();
        async move { rig.send(Request::post("/").body(body).unwrap()).await }
    });
    feed.send(Ok("half".into())).await.unwrap();
    let gone = Failure::new(FailureKind::ClientGone, "the client is gone");
    feed.send(Err(gone)).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap_err().kind, FailureKind::ClientGone);
    assert_eq!(
        ended.recv().await.unwrap(),
        None,
        "a body that was cut off looks whole"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_noticed_while_somebody_waits_for_it() {
    let origin = Origin::start(|conn, _| async move {
        let mut connection = shake_hands(conn, 100).await;
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data("hello".into(), false).unwrap();
        // Sends what there is, and then nothing any more, not even the answer to a ping.
        for _ in 0..64 {
            tokio::select! {
                biased;
                _ = connection.accept() => {}
                () = tokio::task::yield_now() => {}
            }
        }
        std::future::pending::<()>().await;
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let mut body = rig.send(get("/")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    let start = Clock::System.now().monotonic;
    let failure = body.frame().await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::UpstreamReset);
    let took = Clock::System.now().monotonic - start;
    assert!(took < Duration::from_secs(90), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_comes_until_a_time_out_gets_no_further_request() {
    let origin = Origin::start(|conn, number| async move {
        let mut connection = shake_hands(conn, 100).await;
        while let Some(Ok((_, respond))) = connection.accept().await {
            if number == 0 {
                // Lost on the way, as far as anybody can tell.
                return std::future::pending().await;
            }
            answer(respond, b"ok");
        }
    })
    .await;
    let mut rig = h2c(origin.address, |_| {});
    Arc::get_mut(&mut rig).unwrap().timeouts = short_timeouts(Some(1), None);
    let failure = rig.fetch(get("/")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::UpstreamTimeout);
    assert_eq!(rig.fetch(get("/")).await.unwrap(), (200, "ok".into()));
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_no_connection() {
    let origin = Origin::start(|mut conn, _| async move {
        conn.head().await;
        conn.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    })
    .await;
    let rig = h2c(origin.address, |_| {});
    let failure = rig.fetch(post("/", "{}")).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectFailed, false));
    assert_eq!(failure.detail, "the upstream does not speak HTTP/2");
}

#[tokio::test]
async fn all_who_wait_for_a_connection_learn_that_there_is_none() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let rig = h2c(address, |_| {});
    let all = futures_util::future::join_all((0..300).map(|_| rig.fetch(post("/", "x")))).await;
    for failure in all {
        let failure = failure.unwrap_err();
        assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectFailed, false));
    }
}

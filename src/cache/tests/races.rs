//! Orders of events that once went wrong, each on its own.

use super::*;

#[tokio::test]
async fn the_time_that_an_answer_took_is_part_of_its_age() {
    let bench = Bench::gated(numbered);
    let slow = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.time.advance(Duration::from_secs(20));
    bench.open(1);
    slow.await.expect("joined").expect("an answer");
    bench.time.advance(Duration::from_secs(39));
    let hit = bench.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(hit.headers()["age"], "59");
    let status = hit.headers()["cache-status"].to_str().expect("text");
    assert!(status.starts_with("dify-edge; hit; ttl=1;"), "{status}");
}

#[tokio::test]
async fn a_generation_that_breaks_off_ends_its_reads_before_its_client_sees_the_break() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        match request.head.parts.method {
            Method::POST => Ok(Response::new(Body::stream(Broken(Some(()))))),
            _ => Ok(numbered_response(number)),
        }
    });
    let stream = bench
        .send(write(RouteClass::Generation))
        .await
        .expect("an answer");
    bench.get("/v1/info").await;
    let mut body = stream.into_body();
    body.frame().await.expect("a frame").expect("data");
    body.frame().await.expect("a frame").expect_err("a break");
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Miss);
    drop(body);
}

#[tokio::test]
async fn while_a_write_may_still_take_effect_nobody_gets_an_answer_that_was_asked_for_earlier() {
    let bench = Bench::gated(numbered);
    let writing = tokio::spawn(bench.send(write(RouteClass::Write)));
    bench.settle().await;
    writing.abort();
    assert!(writing.await.is_err());
    let readers: Vec<_> = (0..3)
        .map(|_| tokio::spawn(bench.send(get("/v1/info"))))
        .collect();
    bench.settle().await;
    assert_eq!(bench.calls(), 4, "each asks for itself");
    bench.open(3);
    for reader in readers {
        reader.await.expect("joined").expect("an answer");
    }
}

#[tokio::test]
async fn a_slow_fetch_does_not_replace_an_answer_that_was_asked_for_later() {
    let late = Arc::new(Semaphore::new(0));
    let gate = late.clone();
    let bench = Bench::new(CacheConfig::default(), move |_, number| {
        let text = Bytes::from(format!("{{\"n\":{number}}}"));
        Ok(Response::new(match number {
            0 => Body::stream(Late(gate.clone(), Some(text))),
            _ => Body::from(text),
        }))
    });
    let slow = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.time.advance(Duration::from_millis(1));
    let mut renewing = get("/v1/info");
    let fields = &mut renewing.parts.headers;
    fields.insert("cache-control", "no-cache".parse().expect("value"));
    bench.send(renewing).await.expect("an answer");
    late.add_permits(1);
    let (outcome, body) = read(slow.await.expect("joined").expect("an answer")).await;
    assert_eq!((outcome.cache, body.as_str()), (CacheOutcome::Miss, "{\"n\":0}"));
    assert_eq!(bench.get("/v1/info").await.1, "{\"n\":1}");
}

#[tokio::test]
async fn what_the_origin_refuses_is_not_brought_back_by_a_fetch_that_began_before() {
    let late = Arc::new(Semaphore::new(0));
    let gate = late.clone();
    let bench = Bench::new(CacheConfig::default(), move |_, number| {
        let mut response = numbered_response(number);
        match number {
            1 => *response.body_mut() = Body::stream(Late(gate.clone(), Some(Bytes::from_static(b"{}")))),
            2 => *response.status_mut() = StatusCode::UNAUTHORIZED,
            _ => {}
        }
        Ok(response)
    });
    let renewing = || {
        let mut request = get("/v1/info");
        let fields = &mut request.parts.headers;
        fields.insert("cache-control", "no-cache".parse().expect("value"));
        bench.send(request)
    };
    bench.get("/v1/info").await;
    let slow = tokio::spawn(renewing());
    bench.settle().await;
    let refused = renewing().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    late.add_permits(1);
    slow.await.expect("joined").expect("an answer");
    assert_eq!(bench.get("/v1/info").await.1, "{\"n\":3}");
}

#[tokio::test]
async fn what_was_asked_while_a_write_could_take_effect_is_not_stored_afterwards_either() {
    let bench = Bench::gated(numbered);
    let writing = tokio::spawn(bench.send(write(RouteClass::Write)));
    bench.settle().await;
    writing.abort();
    assert!(writing.await.is_err());
    bench.time.advance(Duration::from_secs(29));
    let asked = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.time.advance(Duration::from_secs(2));
    bench.open(2);
    let (outcome, _) = read(asked.await.expect("joined").expect("an answer")).await;
    assert_eq!(outcome.cache, CacheOutcome::Miss);
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Stored);
}

#[tokio::test]
async fn a_failure_of_long_ago_is_no_reason_to_give_a_stale_answer() {
    let bench = Bench::new(CacheConfig::default(), |_, number| match number {
        1 => Err(Failure::new(FailureKind::ConnectFailed, "refused")),
        _ => Ok(numbered_response(number)),
    });
    bench.get("/v1/info").await;
    bench.time.advance(Duration::from_secs(200));
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Stale);
    bench.time.advance(Duration::from_secs(31));
    let (outcome, body) = bench.get("/v1/info").await;
    assert_eq!(
        (outcome.cache, body.as_str()),
        (CacheOutcome::Stored, "{\"n\":2}")
    );
}

#[tokio::test]
async fn a_fetch_that_fails_after_the_last_window_is_no_excuse_for_the_stale_answer() {
    let bench = Bench::gated(|_, number| match number {
        0 => Ok(numbered_response(0)),
        _ => Err(Failure::new(FailureKind::UpstreamTimeout, "too slow").sent()),
    });
    bench.open(1);
    bench.get("/v1/info").await;
    bench.time.advance(Duration::from_secs(3590));
    let asked = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.time.advance(Duration::from_secs(100));
    bench.open(1);
    asked.await.expect("joined").expect_err("a failure");
}

/// A body that comes when it is let.
struct Late(Arc<Semaphore>, Option<Bytes>);

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = Failure;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Failure>>> {
        if self.0.available_permits() == 0 {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(self.1.take().map(|text| Ok(http_body::Frame::data(text))))
    }
}

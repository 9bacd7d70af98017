//! What a write does to what is stored, and to what is under way.

use super::*;

#[tokio::test]
async fn after_a_write_its_reads_miss_whatever_the_status_of_the_write() {
    for status in [200, 204, 400, 401, 409, 500] {
        let bench = Bench::new(CacheConfig::default(), move |request, number| {
            let mut response = numbered_response(number);
            if request.head.parts.method == Method::POST {
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            }
            Ok(response)
        });
        bench.get("/v1/info").await;
        assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Hit);
        bench.send(write(RouteClass::Write)).await.expect("an answer");
        assert_eq!(
            bench.get("/v1/info").await.0.cache,
            CacheOutcome::Stored,
            "after {status}"
        );
    }
}

#[tokio::test]
async fn nonsense_on_an_unknown_path_ends_nothing_but_a_real_write_there_does() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        let (status, kind) = match request.head.parts.uri.path() {
            "/v1/nope" => (404, "text/html; charset=utf-8"),
            "/v1/%64atasets/1" => (404, "application/json"),
            _ => (200, "application/json"),
        };
        let mut response = numbered_response(number);
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response
            .headers_mut()
            .insert("content-type", kind.parse().expect("value"));
        Ok(response)
    });
    bench.get("/v1/info").await;
    for (path, then) in [
        ("/v1/nope", CacheOutcome::Hit),
        ("/v1/%64atasets/1", CacheOutcome::Stored),
    ] {
        let mut unknown = write(RouteClass::Passthrough);
        unknown.decision.template = "*";
        unknown.parts.uri = path.parse().expect("a path");
        bench.send(unknown).await.expect("an answer");
        assert_eq!(bench.get("/v1/info").await.0.cache, then, "{path}");
    }
}

#[tokio::test]
async fn a_read_in_flight_when_a_write_ends_is_never_stored() {
    let bench = Bench::gated(numbered);
    let before = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.write_ends();
    bench.open(1);
    assert_eq!(
        read(before.await.expect("joined").expect("an answer")).await.1,
        "{\"n\":0}"
    );
    bench.open(1);
    let (outcome, after) = bench.get("/v1/info").await;
    assert_eq!(
        (outcome.cache, after.as_str()),
        (CacheOutcome::Stored, "{\"n\":1}")
    );
}

#[tokio::test]
async fn who_asks_after_a_write_does_not_get_an_answer_that_was_fetched_before_it() {
    let bench = Bench::gated(numbered);
    let before = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.write_ends();
    let after = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    assert_eq!(bench.calls(), 2, "it began a fetch of its own");
    bench.open(2);
    assert_eq!(
        read(before.await.expect("joined").expect("an answer")).await.1,
        "{\"n\":0}"
    );
    assert_eq!(
        read(after.await.expect("joined").expect("an answer")).await.1,
        "{\"n\":1}"
    );
    assert_eq!(
        bench.get("/v1/info").await.1,
        "{\"n\":1}",
        "and only the later one is kept"
    );
}

#[tokio::test]
async fn a_write_that_is_cut_off_keeps_its_reads_out_of_the_cache_for_a_while() {
    let bench = Bench::gated(numbered);
    bench.open(1);
    bench.get("/v1/info").await;
    let writing = tokio::spawn(bench.send(write(RouteClass::Write)));
    bench.settle().await;
    writing.abort();
    assert!(writing.await.is_err());
    bench.open(10);
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Miss);
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Miss);
    bench.time.advance(Duration::from_secs(31));
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Stored);
}

#[tokio::test]
async fn what_a_write_may_change_ends_when_it_goes_out_and_again_when_it_is_answered() {
    let bench = Bench::gated(numbered);
    bench.open(1);
    bench.get("/v1/info").await;
    let writing = tokio::spawn(bench.send(write(RouteClass::Write)));
    bench.settle().await;
    let meanwhile = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    assert_eq!(bench.calls(), 3, "the read went to the upstream");
    bench.open(2);
    writing.await.expect("joined").expect("an answer");
    meanwhile.await.expect("joined").expect("an answer");
    bench.open(1);
    assert_eq!(
        bench.get("/v1/info").await.0.cache,
        CacheOutcome::Stored,
        "and was ended by the answer"
    );
}

#[tokio::test]
async fn a_write_that_never_reached_the_upstream_leaves_nothing_unsettled() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        match request.head.parts.method {
            Method::POST => Err(Failure::new(FailureKind::ConnectFailed, "refused")),
            _ => Ok(numbered_response(number)),
        }
    });
    bench.send(write(RouteClass::Write)).await.expect_err("refused");
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Stored);
}

#[tokio::test]
async fn a_generation_ends_its_reads_at_its_beginning_and_again_at_its_end() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        match request.head.parts.method {
            Method::POST => Ok(Response::new(Body::stream(Body::from(Bytes::from_static(
                b"data: 1\n\n",
            ))))),
            _ => Ok(numbered_response(number)),
        }
    });
    bench.get("/v1/info").await;
    let stream = bench
        .send(write(RouteClass::Generation))
        .await
        .expect("an answer");
    assert_eq!(
        bench.get("/v1/info").await.0.cache,
        CacheOutcome::Stored,
        "ended at the head"
    );
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Hit);
    stream.into_body().collect().await.expect("a whole stream");
    assert_eq!(
        bench.get("/v1/info").await.0.cache,
        CacheOutcome::Stored,
        "ended at the end"
    );
    let cut = bench
        .send(write(RouteClass::Generation))
        .await
        .expect("an answer");
    drop(cut);
    assert_eq!(
        bench.get("/v1/info").await.0.cache,
        CacheOutcome::Miss,
        "unsettled after a cut"
    );
}

//! Stale answers on purpose: while revalidating, on errors, after a soft purge, and refreshing ahead of time.

use super::*;
use crate::cache::control::{CacheControl, Selection};
use crate::config::cache::RefreshAheadConfig;

const TTL: Duration = Duration::from_secs(60);

fn detail(response: &Response<Body>) -> String {
    let status = response.headers()["cache-status"].to_str().expect("text");
    status.split("; detail=").nth(1).expect("a detail").to_owned()
}

fn down(number: usize) -> Result<Response<Body>, Failure> {
    match number % 4 {
        0 => Err(Failure::new(FailureKind::ConnectFailed, "refused")),
        1 => Err(Failure::new(FailureKind::UpstreamTimeout, "too slow").sent()),
        2 => Ok(Response::builder()
            .status(500)
            .body(Body::Empty)
            .expect("a response")),
        _ => Ok(Response::builder()
            .status(503)
            .body(Body::Empty)
            .expect("a response")),
    }
}

fn control(bench: &Bench) -> CacheControl {
    bench.layer.control()
}

async fn status_of(bench: &Bench, request: ClassifiedRequest) -> (CacheOutcome, String, String) {
    let response = bench.send(request).await.expect("an answer");
    let status = response.headers()["cache-status"]
        .to_str()
        .expect("text")
        .to_owned();
    let (outcome, body) = read(response).await;
    (outcome.cache, body, status)
}

#[tokio::test]
async fn a_stale_answer_is_given_at_once_while_one_refresh_runs() {
    let bench = Bench::gated(|request, number| {
        assert_eq!(
            request.head.parts.headers["host"], "dify",
            "with the request's own fields"
        );
        assert!(number == 0 || request.head.parts.headers.contains_key("x-mine"));
        numbered(request, number)
    });
    bench.open(1);
    bench.get("/v1/info").await;
    bench.time.advance(TTL + Duration::from_secs(5));
    for _ in 0..10 {
        let mut request = get("/v1/info");
        request
            .parts
            .headers
            .insert("x-mine", "1".parse().expect("a value"));
        let (outcome, body, status) = status_of(&bench, request).await;
        assert_eq!((outcome, body.as_str()), (CacheOutcome::Stale, "{\"n\":0}"));
        assert!(status.starts_with("dify-edge; hit; ttl=-5; key="), "{status}");
        assert!(status.ends_with("; detail=stale-while-revalidate"), "{status}");
        bench.time.advance(Duration::from_millis(10));
        bench.settle().await;
    }
    assert_eq!(bench.calls(), 2, "one refresh for all");
    bench.open(1);
    bench.settle().await;
    let (outcome, body) = bench.get("/v1/info").await;
    assert_eq!((outcome.cache, body.as_str()), (CacheOutcome::Hit, "{\"n\":1}"));
    assert_eq!(control(&bench).stats().refreshed, 1);
}

#[tokio::test]
async fn after_both_windows_nothing_stale_is_given() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        if number == 0 {
            numbered(request, 0)
        } else {
            down(0)
        }
    });
    bench.get("/v1/info").await;
    // The ceiling of an hour ends the window of stale-if-error.
    bench.time.advance(Duration::from_secs(3600));
    let failure = bench.send(get("/v1/info")).await.expect_err("nothing is left");
    assert_eq!(failure.kind, FailureKind::ConnectFailed);
}

#[tokio::test]
async fn every_kind_of_outage_is_bridged_by_the_stale_answer() {
    for kind in 0..4 {
        let bench = Bench::new(CacheConfig::default(), move |request, number| {
            if number == 0 {
                numbered(request, 0)
            } else {
                down(kind)
            }
        });
        bench.get("/v1/info").await;
        bench.time.advance(TTL + Duration::from_secs(120));
        let (outcome, body, status) = status_of(&bench, get("/v1/info")).await;
        assert_eq!((outcome, body.as_str()), (CacheOutcome::Stale, "{\"n\":0}"));
        let forwarded = ["", "", "; fwd-status=500", "; fwd-status=503"][kind];
        assert!(
            status.starts_with(&format!("dify-edge; fwd=stale{forwarded}; ttl=-120; key=")),
            "{status}"
        );
        assert!(status.ends_with("; detail=stale-if-error"), "{status}");
        // From now on nobody waits for the outage: one try a second, behind the answer.
        for (after, calls) in [(0, 3), (500, 3), (500, 4), (1000, 5)] {
            bench.time.advance(Duration::from_millis(after));
            let (outcome, _, status) = status_of(&bench, get("/v1/info")).await;
            assert_eq!(outcome, CacheOutcome::Stale);
            assert!(status.starts_with("dify-edge; hit; ttl=-12"), "{status}");
            bench.settle().await;
            assert_eq!(bench.calls(), calls, "kind {kind}, after {after} ms");
        }
    }
}

#[tokio::test]
async fn those_who_wait_for_a_fetch_that_fails_get_the_stale_answer_too() {
    for kind in 0..4 {
        let bench = Bench::gated(move |request, number| {
            if number == 0 {
                numbered(request, 0)
            } else {
                down(kind)
            }
        });
        bench.open(1);
        bench.get("/v1/info").await;
        bench.time.advance(TTL * 3);
        let waiting: Vec<_> = (0..5)
            .map(|_| tokio::spawn(bench.send(get("/v1/info"))))
            .collect();
        bench.settle().await;
        bench.open(1);
        for answer in waiting {
            let answer = answer.await.expect("no panic").expect("an answer");
            assert_eq!(detail(&answer), "stale-if-error");
        }
        assert_eq!(bench.calls(), 2, "nobody else had to ask");
    }
}

#[tokio::test]
async fn an_answer_that_says_something_else_ends_the_stale_one() {
    let bench = Bench::new(CacheConfig::default(), |request, number| match number {
        0 => numbered(request, 0),
        1 => Ok(Response::builder()
            .status(401)
            .body(Body::Empty)
            .expect("a response")),
        _ => down(0),
    });
    bench.get("/v1/info").await;
    bench.time.advance(TTL * 3);
    let gone = bench.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(gone.status(), 401);
    assert!(
        bench.send(get("/v1/info")).await.is_err(),
        "the key is no good any more"
    );
}

#[tokio::test]
async fn a_write_ends_stale_use_at_once_even_while_the_fetch_that_fails_is_under_way() {
    let bench = Bench::gated(|request, number| {
        if number == 0 {
            numbered(request, 0)
        } else {
            down(0)
        }
    });
    bench.open(1);
    bench.get("/v1/info").await;
    bench.time.advance(TTL * 3);
    let waiting = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.write_ends();
    bench.open(1);
    assert!(waiting.await.expect("no panic").is_err());
    let waiting = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    bench.open(1);
    assert!(waiting.await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_refresh_that_a_write_overtakes_is_not_stored() {
    let bench = Bench::gated(numbered);
    bench.open(1);
    bench.get("/v1/info").await;
    bench.time.advance(TTL);
    bench.get("/v1/info").await;
    bench.settle().await;
    assert_eq!(bench.calls(), 2, "a refresh is under way");
    bench.write_ends();
    bench.open(2);
    bench.settle().await;
    let (outcome, body) = bench.get("/v1/info").await;
    assert_eq!(
        (outcome.cache, body.as_str()),
        (CacheOutcome::Stored, "{\"n\":2}")
    );
}

#[tokio::test]
async fn hot_answers_are_fetched_ahead_of_their_end_and_cold_ones_are_not() {
    let mut config = never_stale();
    config.refresh_ahead = Some(RefreshAheadConfig::default());
    let bench = Bench::new(config, numbered);
    bench.get("/v1/info").await;
    bench.get("/v1/cold").await;
    for _ in 0..9 {
        assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Hit);
    }
    bench.time.advance(Duration::from_secs(47));
    let early = bench.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(detail(&early), "metadata", "more than a fifth is left");
    bench.time.advance(Duration::from_secs(2));
    let late = bench.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(detail(&late), "refresh-ahead");
    assert_eq!(
        bench
            .send(get("/v1/cold"))
            .await
            .map(|r| detail(&r))
            .expect("an answer"),
        "metadata"
    );
    bench.settle().await;
    assert_eq!(bench.calls(), 3);
    bench.time.advance(Duration::from_secs(30));
    let (outcome, body) = bench.get("/v1/info").await;
    assert_eq!((outcome.cache, body.as_str()), (CacheOutcome::Hit, "{\"n\":2}"));
    assert_eq!(bench.get("/v1/cold").await.0.cache, CacheOutcome::Stored);
}

#[tokio::test]
async fn refreshes_are_bounded_in_number() {
    let bench = Bench::gated(numbered);
    bench.open(100);
    for i in 0..100 {
        bench.get(&format!("/v1/info?{i}")).await;
    }
    bench.time.advance(TTL);
    for i in 0..100 {
        assert_eq!(
            bench.get(&format!("/v1/info?{i}")).await.0.cache,
            CacheOutcome::Stale
        );
    }
    bench.settle().await;
    assert_eq!(bench.calls(), 164);
    assert_eq!(control(&bench).stats().refreshes_skipped, 36);
}

#[tokio::test]
async fn a_purge_ends_what_it_means_and_nothing_else() {
    let key = |bench: &Bench| control(bench).entries("")[0].key.clone();
    let meant = |bench: &Bench, which: usize| match which {
        0 => Selection::Tag(Tag::all(TagKind::AppMetadata)),
        1 => Selection::Route("/v1/info".into()),
        2 => Selection::Principal(Principal([7; 16])),
        3 => {
            let digits = u32::from_str_radix(&key(bench)[..8], 16).expect("hexadecimal");
            Selection::Key(digits.to_be_bytes())
        }
        _ => Selection::All,
    };
    let others = [
        Selection::Tag(Tag::all(TagKind::Datasets)),
        Selection::Route("/v1/inf".into()),
        Selection::Principal(Principal([8; 16])),
        Selection::Key([0; 4]),
    ];
    for which in 0..5 {
        for soft in [false, true] {
            let bench = Bench::new(CacheConfig::default(), numbered);
            bench.get("/v1/info").await;
            control(&bench).refresh_gauges();
            for other in &others {
                assert_eq!(control(&bench).purge(other, soft).0.entries, 0, "{other:?}");
            }
            assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Hit);
            let selection = meant(&bench, which);
            assert_eq!(
                control(&bench).purge(&selection, soft).0.entries,
                1,
                "{selection:?}"
            );
            let (outcome, body) = bench.get("/v1/info").await;
            if soft {
                assert_eq!((outcome.cache, body.as_str()), (CacheOutcome::Stale, "{\"n\":0}"));
                bench.settle().await;
                assert_eq!(
                    bench.get("/v1/info").await.1,
                    "{\"n\":1}",
                    "replaced in the background"
                );
            } else {
                assert_eq!(
                    (outcome.cache, body.as_str()),
                    (CacheOutcome::Stored, "{\"n\":1}")
                );
            }
        }
    }
}

#[tokio::test]
async fn a_purge_during_a_fill_keeps_the_answer_out() {
    let bench = Bench::gated(numbered);
    let waiting = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    drop(control(&bench).purge(&Selection::All, false));
    bench.open(2);
    let (outcome, _) = read(waiting.await.expect("no panic").expect("an answer")).await;
    assert_eq!(outcome.cache, CacheOutcome::Miss);
    assert_eq!(bench.get("/v1/info").await.1, "{\"n\":1}");
}

#[tokio::test]
async fn an_entry_is_shown_by_its_key_with_its_state() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    bench.get("/v1/info").await;
    let state = |prefix: &str| control(&bench).entries(prefix).first().map(|entry| entry.state);
    let entry = control(&bench).entries("")[0].clone();
    assert_eq!(
        (entry.route, entry.status, entry.body_bytes, entry.ttl),
        ("/v1/info", 200, 7, 60)
    );
    assert_eq!((entry.stale_while_revalidate, entry.stale_if_error), (60, 3540));
    assert_eq!(state(&entry.key), Some("fresh"));
    assert_eq!(state(&entry.key[..8].to_uppercase()), Some("fresh"));
    bench.time.advance(TTL);
    assert_eq!(state(&entry.key), Some("stale-while-revalidate"));
    bench.time.advance(TTL);
    assert_eq!(state(&entry.key), Some("stale-if-error"));
    bench.time.advance(Duration::from_secs(3600));
    assert_eq!(state(&entry.key), Some("expired"));
    bench.write_ends();
    assert_eq!(state(&entry.key), Some("ended"));
}

#[tokio::test]
async fn who_asks_for_an_age_gets_nothing_stale() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    for (directive, expected) in [("max-age=3600", "{\"n\":1}"), ("min-fresh=0", "{\"n\":2}")] {
        bench.get("/v1/info").await;
        bench.time.advance(TTL + Duration::from_secs(1));
        let mut request = get("/v1/info");
        request
            .parts
            .headers
            .insert("cache-control", directive.parse().expect("a value"));
        let (outcome, body, _) = status_of(&bench, request).await;
        assert_eq!((outcome, body.as_str()), (CacheOutcome::Stored, expected));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_bridged_as_an_outage_is() {
    let bench = Bench::new(CacheConfig::default(), |request, number| {
        if number == 0 {
            return numbered(request, 0);
        }
        let cut = Failure::new(FailureKind::UpstreamReset, "cut off").sent();
        let frames = [
            Ok(http_body::Frame::data(Bytes::from_static(b"{\"n\""))),
            Err(cut),
        ];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        Ok(Response::new(Body::stream(body)))
    });
    bench.get("/v1/info").await;
    bench.time.advance(TTL * 3);
    for expected in [
        "dify-edge; fwd=stale; fwd-status=200; ttl=-120;",
        "dify-edge; hit; ttl=-120;",
    ] {
        let (outcome, body, status) = status_of(&bench, get("/v1/info")).await;
        assert_eq!((outcome, body.as_str()), (CacheOutcome::Stale, "{\"n\":0}"));
        assert!(status.starts_with(expected), "{status}");
    }
}

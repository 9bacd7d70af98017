//! Writes after whose answer Dify works on: nothing that they touch is kept until the state is known again.

use super::*;
use crate::types::ids::Batch;

const COMPLETED: &str = r#"{"data": [{"id": "x", "indexing_status": "completed"}]}"#;
const INDEXING: &str = r#"{"data": [{"id": "x", "indexing_status": "indexing"}]}"#;

fn dataset() -> Tag {
    Tag::of(TagKind::Datasets, b"d")
}

/// A read of the data set.
fn documents() -> ClassifiedRequest {
    let mut read = get("/v1/datasets/d/documents");
    read.decision.fills = Tags::from_slice(&[Tag::all(TagKind::Datasets), dataset()]);
    read
}

/// A write whose answer says that `batch` is being indexed.
fn create(batch: &str) -> ClassifiedRequest {
    let mut create = request(Method::POST, &format!("/v1/create/{batch}"));
    create.decision.class = RouteClass::Upload;
    create.decision.cache = CacheClass::Never;
    create.decision.invalidates = Tags::from_slice(&[dataset()]);
    create.decision.background = Background::Begins(Tags::from_slice(&[dataset()]));
    create
}

/// A question about the progress of `batch`.
fn progress(batch: &str) -> ClassifiedRequest {
    let mut status = get("/v1/progress");
    status.decision.class = RouteClass::TaskStatus;
    status.decision.cache = CacheClass::Never;
    let tags = Tags::from_slice(&[Tag::all(TagKind::Datasets), dataset()]);
    status.decision.background = Background::Tells(Batch::named(batch.as_bytes()), tags);
    status
}

/// An upstream that names the batch of each write, and tells of progress what it is told to.
fn bench(progress: impl Fn() -> Result<Response<Body>, Failure> + Send + Sync + 'static) -> Bench {
    Bench::new(never_stale(), move |request, number| {
        let path = request.head.parts.uri.path();
        match path.strip_prefix("/v1/create/") {
            Some(batch) => ok(format!("{{\"batch\": \"{batch}\"}}")),
            None if path == "/v1/progress" => progress(),
            None => Ok(numbered_response(number)),
        }
    })
}

impl Bench {
    /// What the cache does with a read of the data set.
    async fn reads(&self) -> CacheOutcome {
        read(self.send(documents()).await.expect("an answer"))
            .await
            .0
            .cache
    }

    async fn ask(&self, request: ClassifiedRequest) -> String {
        read(self.send(request).await.expect("an answer")).await.1
    }
}

#[tokio::test]
async fn reads_are_not_kept_between_a_write_and_the_end_of_its_work() {
    let done = Arc::new(AtomicUsize::new(0));
    let state = done.clone();
    let bench = bench(move || ok([INDEXING, COMPLETED][state.load(Ordering::SeqCst)]));
    bench.reads().await;
    assert_eq!(bench.reads().await, CacheOutcome::Hit);
    assert_eq!(
        bench.ask(create("1")).await,
        "{\"batch\": \"1\"}",
        "given as it is"
    );
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    assert_eq!(bench.ask(progress("1")).await, INDEXING);
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    done.store(1, Ordering::SeqCst);
    bench.ask(progress("of another write")).await;
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    assert_eq!(bench.ask(progress("1")).await, COMPLETED, "given as it is");
    assert_eq!(bench.reads().await, CacheOutcome::Stored);
    bench.ask(progress("1")).await;
    assert_eq!(
        bench.reads().await,
        CacheOutcome::Hit,
        "asking again ends nothing"
    );
}

#[tokio::test]
async fn of_two_writes_the_end_of_one_is_not_enough() {
    let bench = bench(|| ok(COMPLETED));
    bench.ask(create("1")).await;
    bench.time.advance(Duration::from_secs(10));
    bench.ask(create("2")).await;
    for batch in ["1", "2"] {
        bench.ask(progress(batch)).await;
        assert_eq!(bench.reads().await, CacheOutcome::Miss, "after {batch}");
    }
    bench.time.advance(Duration::from_secs(29));
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    bench.time.advance(Duration::from_secs(1));
    assert_eq!(bench.reads().await, CacheOutcome::Stored);
}

#[tokio::test]
async fn the_window_is_the_configured_one() {
    let mut config = never_stale();
    config.unsettled_window = Span::secs(7);
    let bench = Bench::new(config, |_, number| Ok(numbered_response(number)));
    bench.ask(create("1")).await;
    bench.time.advance(Duration::from_millis(6_999));
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    bench.time.advance(Duration::from_millis(1));
    assert_eq!(bench.reads().await, CacheOutcome::Stored);
}

#[tokio::test]
async fn a_refused_write_begins_no_work() {
    for (status, then) in [
        (200, CacheOutcome::Miss),
        (302, CacheOutcome::Miss),
        (400, CacheOutcome::Stored),
        (500, CacheOutcome::Stored),
    ] {
        let bench = Bench::new(never_stale(), move |request, number| {
            let mut response = numbered_response(number);
            if request.head.parts.method == Method::POST {
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            }
            Ok(response)
        });
        bench.ask(create("1")).await;
        assert_eq!(bench.reads().await, then, "after {status}");
    }
}

#[tokio::test]
async fn a_generation_that_begins_work_leaves_it_unsettled_at_its_end() {
    let bench = bench(|| ok(COMPLETED));
    let mut run = create("1");
    run.decision.class = RouteClass::Generation;
    bench.ask(run).await;
    bench.ask(progress("1")).await;
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    bench.time.advance(Duration::from_secs(30));
    assert_eq!(bench.reads().await, CacheOutcome::Stored);
}

#[tokio::test]
async fn an_answer_that_is_long_or_no_json_or_an_error_settles_nothing_and_is_given_whole() {
    let long = format!("{COMPLETED}{}", " ".repeat(256 << 10));
    for (status, kind, body) in [
        (200, "application/json", long.as_str()),
        (200, "text/plain", COMPLETED),
        (404, "application/json", COMPLETED),
        (200, "application/json", "{\"data\": []}"),
        (200, "application/json", "{\"data\":"),
    ] {
        let text = body.to_owned();
        let bench = bench(move || {
            Ok(Response::builder()
                .status(status)
                .header("content-type", kind)
                .body(Body::stream(Body::from(Bytes::from(text.clone()))))
                .expect("a response"))
        });
        bench.ask(create("1")).await;
        assert!(bench.ask(progress("1")).await == body, "it was changed");
        assert_eq!(bench.reads().await, CacheOutcome::Miss);
    }
}

#[tokio::test]
async fn an_answer_that_was_asked_for_before_a_write_settles_nothing() {
    let bench = Bench::gated(|request, number| match request.head.parts.uri.path() {
        "/v1/progress" => ok(COMPLETED),
        _ => Ok(numbered_response(number)),
    });
    let asked = tokio::spawn(bench.send(progress("1")));
    bench.settle().await;
    // A document of the batch is updated, and answered first.
    let shared = bench.cache.shared_for_test();
    let window = Duration::from_secs(30);
    let _ = shared
        .coherence
        .bump_unsettled(&[dataset()], window, Some(Batch::named(b"1")));
    bench.open(10);
    read(asked.await.expect("joined").expect("an answer")).await;
    assert_eq!(bench.reads().await, CacheOutcome::Miss);
    bench.ask(progress("1")).await;
    assert_eq!(bench.reads().await, CacheOutcome::Stored);
}

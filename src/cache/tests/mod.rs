//! The cache stage over a scripted inner service: no sockets, a clock moved by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tower::{Layer as _, Service, ServiceExt as _};

use super::{Cache, CacheLayer, CacheMetrics};
use crate::config::CacheConfig;
use crate::config::cache::SetCookie;
use crate::types::cluster::Works;
use crate::types::ids::{Principal, Tag, TagKind, Tags};
use crate::types::outcome::{CacheOutcome, Outcome, RouteClass};
use crate::types::request::{
    Asks, Background, CacheClass, ClassifiedRequest, Client, Decision, FetchRequest, Lane, Timeouts,
    UpstreamId,
};
use crate::types::time::{Clock, ManualTime};
use crate::types::units::Span;
use crate::types::{Body, Failure, FailureKind};

mod background;
mod flights;
mod instances;
mod interleavings;
mod model;
mod races;
mod stale;
mod tags;
mod writes;

type Script = Arc<dyn Fn(&FetchRequest, usize) -> Result<Response<Body>, Failure> + Send + Sync>;

/// An inner service that answers by script, once per permit.
#[derive(Clone)]
struct Upstream {
    script: Script,
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Service<FetchRequest> for Upstream {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, Failure>>;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failure>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: FetchRequest) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let number = this.calls.fetch_add(1, Ordering::SeqCst);
            this.gate.acquire().await.expect("gate is open").forget();
            (this.script)(&request, number)
        })
    }
}

struct Bench {
    layer: CacheLayer,
    cache: Cache<Upstream>,
    upstream: Upstream,
    time: Arc<ManualTime>,
}

impl Bench {
    fn new(
        config: CacheConfig,
        script: impl Fn(&FetchRequest, usize) -> Result<Response<Body>, Failure> + Send + Sync + 'static,
    ) -> Self {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_364_120));
        let metrics = CacheMetrics::register(&prometheus::Registry::new()).expect("fresh registry");
        let upstream = Upstream {
            script: Arc::new(script),
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        };
        let layer = CacheLayer::new(config, clock, metrics);
        let cache = layer.layer(upstream.clone());
        Self {
            layer,
            cache,
            upstream,
            time,
        }
    }

    /// The same, but each answer waits for [`Bench::open`].
    fn gated(
        script: impl Fn(&FetchRequest, usize) -> Result<Response<Body>, Failure> + Send + Sync + 'static,
    ) -> Self {
        let bench = Self::new(CacheConfig::default(), script);
        bench.upstream.gate.forget_permits(Semaphore::MAX_PERMITS);
        bench
    }

    fn open(&self, answers: usize) {
        self.upstream.gate.add_permits(answers);
    }

    fn calls(&self) -> usize {
        self.upstream.calls.load(Ordering::SeqCst)
    }

    fn send(
        &self,
        request: ClassifiedRequest,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + Send + 'static {
        self.cache.clone().oneshot(request)
    }

    async fn get(&self, path: &str) -> (Outcome, String) {
        read(self.send(get(path)).await.expect("an answer")).await
    }

    /// What a write does when its answer is there.
    fn write_ends(&self) {
        self.cache.tags_for_test().bump(&[Tag::all(TagKind::AppMetadata)]);
    }

    async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
}

async fn read(response: Response<Body>) -> (Outcome, String) {
    let outcome = *response.extensions().get::<Outcome>().expect("an outcome");
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    (outcome, String::from_utf8(body.to_vec()).expect("text"))
}

fn request(method: Method, path: &str) -> ClassifiedRequest {
    let (parts, ()) = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "dify")
        .body(())
        .expect("a request")
        .into_parts();
    ClassifiedRequest {
        parts,
        body: Body::Empty,
        client: Client {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            trusted: false,
        },
        decision: Decision {
            upstream: UpstreamId(0),
            class: RouteClass::Metadata,
            template: "/v1/info",
            cache: CacheClass::Metadata,
            principal: Some(Principal([7; 16])),
            fills: Tags::from_slice(&[Tag::all(TagKind::AppMetadata)]),
            invalidates: Tags::new(),
            lane: Lane::Short,
            timeouts: Timeouts {
                total: None,
                idle: None,
            },
            wants_user: false,
            background: Background::None,
            asks: Asks::new(),
            misnamed: None,
            learns: &[],
            works: Works::default(),
        },
    }
}

fn get(path: &str) -> ClassifiedRequest {
    request(Method::GET, path)
}

fn write(class: RouteClass) -> ClassifiedRequest {
    let mut write = request(Method::POST, "/v1/write");
    write.decision.class = class;
    write.decision.cache = CacheClass::Never;
    write.decision.invalidates = Tags::from_slice(&[Tag::all(TagKind::AppMetadata)]);
    write
}

/// No stale answer is ever given.
fn never_stale() -> CacheConfig {
    let mut config = CacheConfig::default();
    config.classes.metadata.stale_while_revalidate = Span::secs(0);
    config.classes.metadata.stale_if_error = Span::secs(0);
    config
}

fn ok(body: impl Into<Bytes>) -> Result<Response<Body>, Failure> {
    Ok(Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(body.into()))
        .expect("a response"))
}

fn numbered(_: &FetchRequest, number: usize) -> Result<Response<Body>, Failure> {
    ok(format!("{{\"n\":{number}}}"))
}

#[tokio::test]
async fn an_answer_is_fetched_once_and_then_comes_from_memory_until_its_ttl_ends() {
    let bench = Bench::new(never_stale(), numbered);
    let (first, body) = bench.get("/v1/info").await;
    assert_eq!((first.cache, body.as_str()), (CacheOutcome::Stored, "{\"n\":0}"));
    bench.time.advance(Duration::from_millis(59_999));
    let hit = bench.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(hit.headers()["age"], "59");
    let status = hit.headers()["cache-status"].to_str().expect("text").to_owned();
    assert!(status.starts_with("dify-edge; hit; ttl=0; key=\""), "{status}");
    assert_eq!(read(hit).await.1, "{\"n\":0}");
    bench.time.advance(Duration::from_millis(1));
    let stale = bench.send(get("/v1/info")).await.expect("an answer");
    let status = stale.headers()["cache-status"].to_str().expect("text");
    assert!(
        status.starts_with("dify-edge; fwd=stale; fwd-status=200; stored; ttl=60"),
        "{status}"
    );
    assert_eq!(read(stale).await.1, "{\"n\":1}");
}

#[tokio::test]
async fn a_thousand_concurrent_misses_make_one_fetch_and_a_thousand_whole_answers() {
    let bench = Bench::gated(numbered);
    let waiting: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(bench.send(get("/v1/info"))))
        .collect();
    bench.settle().await;
    bench.open(1);
    for waiter in waiting {
        let (_, body) = read(waiter.await.expect("joined").expect("an answer")).await;
        assert_eq!(body, "{\"n\":0}");
    }
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn a_file_that_the_origin_lets_us_keep_is_fetched_once_and_an_unknown_path_is_not_waited_for() {
    for (template, fetches) in [("/v1/files/{file_id:uuid}/preview", 1), ("*", 3)] {
        let bench = Bench::gated(|_, number| {
            let mut response = numbered_response(number);
            let fields = response.headers_mut();
            fields.insert("cache-control", "public, max-age=3600".parse().expect("value"));
            Ok(response)
        });
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let mut request = get("/v1/files/1/preview");
                request.decision.template = template;
                request.decision.cache = CacheClass::Origin;
                tokio::spawn(bench.send(request))
            })
            .collect();
        bench.settle().await;
        assert_eq!(bench.calls(), fetches, "{template}");
        bench.open(fetches);
        for waiter in waiting {
            waiter.await.expect("joined").expect("an answer");
        }
    }
}

#[tokio::test]
async fn a_request_that_refuses_stored_answers_does_not_wait_for_a_fetch_that_is_under_way() {
    let bench = Bench::gated(numbered);
    bench.open(1);
    bench.get("/v1/info").await;
    bench.time.advance(Duration::from_secs(61));
    let waiting = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    let mut renewing = get("/v1/info");
    renewing
        .parts
        .headers
        .insert("cache-control", "no-cache".parse().expect("value"));
    let renewing = tokio::spawn(bench.send(renewing));
    bench.settle().await;
    assert_eq!(bench.calls(), 3);
    bench.open(2);
    waiting.await.expect("joined").expect("an answer");
    renewing.await.expect("joined").expect("an answer");
}

#[tokio::test]
async fn the_fetch_goes_on_when_the_client_that_began_it_leaves() {
    let bench = Bench::gated(numbered);
    let first = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    let second = tokio::spawn(bench.send(get("/v1/info")));
    bench.settle().await;
    first.abort();
    bench.settle().await;
    bench.open(1);
    let (outcome, body) = read(second.await.expect("joined").expect("an answer")).await;
    assert_eq!(
        (outcome.cache, body.as_str()),
        (CacheOutcome::Collapsed, "{\"n\":0}")
    );
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn an_answer_that_cannot_be_stored_releases_everyone_at_once() {
    let bench = Bench::gated(|_, number| {
        let mut response = numbered_response(number);
        response
            .headers_mut()
            .insert("cache-control", "no-store".parse().expect("value"));
        Ok(response)
    });
    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(bench.send(get("/v1/info"))))
        .collect();
    bench.settle().await;
    assert_eq!(bench.calls(), 1);
    bench.open(1);
    bench.settle().await;
    assert_eq!(
        bench.calls(),
        20,
        "all the others are under way together, not one after another"
    );
    bench.open(19);
    for waiter in waiting {
        waiter.await.expect("joined").expect("an answer");
    }
    let again = [
        tokio::spawn(bench.send(get("/v1/info"))),
        tokio::spawn(bench.send(get("/v1/info"))),
    ];
    bench.settle().await;
    assert_eq!(bench.calls(), 22, "and who comes next does not wait at all");
    bench.open(2);
    for waiter in again {
        waiter.await.expect("joined").expect("an answer");
    }
}

fn numbered_response(number: usize) -> Response<Body> {
    Response::new(Body::from(Bytes::from(format!("{{\"n\":{number}}}"))))
}

#[tokio::test]
async fn a_failed_fetch_fails_everyone_who_waited_and_is_not_kept() {
    let bench = Bench::gated(|_, number| match number {
        0 => Err(Failure::new(FailureKind::ConnectFailed, "refused")),
        _ => ok("{}"),
    });
    let waiting: Vec<_> = (0..5)
        .map(|_| tokio::spawn(bench.send(get("/v1/info"))))
        .collect();
    bench.settle().await;
    bench.open(2);
    for waiter in waiting {
        let failure = waiter.await.expect("joined").expect_err("a failure");
        assert_eq!(failure.kind, FailureKind::ConnectFailed);
        assert_eq!(failure.outcome.expect("an outcome").class, RouteClass::Metadata);
    }
    assert_eq!(bench.calls(), 1);
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Stored);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored_and_its_reader_sees_the_break() {
    let bench = Bench::new(CacheConfig::default(), |_, _| {
        Ok(Response::new(Body::stream(Broken(Some(())))))
    });
    let response = bench.send(get("/v1/info")).await.expect("a head");
    assert!(response.into_body().collect().await.is_err());
    bench.send(get("/v1/info")).await.expect("a head");
    assert_eq!(bench.calls(), 2);
}

struct Broken(Option<()>);

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = Failure;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Failure>>> {
        std::task::Poll::Ready(Some(match self.0.take() {
            Some(()) => Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
            None => Err(Failure::new(FailureKind::UpstreamReset, "cut off")),
        }))
    }
}

#[tokio::test]
async fn a_cookie_goes_to_the_client_that_asked_and_not_into_the_stored_copy() {
    let with_cookie = |_: &FetchRequest, number: usize| {
        let mut response = numbered_response(number);
        response
            .headers_mut()
            .append("set-cookie", "x-token=secret".parse().expect("value"));
        Ok(response)
    };
    let refusing = Bench::new(CacheConfig::default(), with_cookie);
    refusing.get("/v1/info").await;
    refusing.get("/v1/info").await;
    assert_eq!(refusing.calls(), 2);

    let mut config = CacheConfig::default();
    config.classes.metadata.set_cookie = SetCookie::Strip;
    let stripping = Bench::new(config, with_cookie);
    let first = stripping.send(get("/v1/info")).await.expect("an answer");
    assert_eq!(first.headers()["set-cookie"], "x-token=secret");
    let hit = stripping.send(get("/v1/info")).await.expect("an answer");
    assert!(!hit.headers().contains_key("set-cookie"));
    assert_eq!(stripping.calls(), 1);
}

#[tokio::test]
async fn head_is_answered_from_the_stored_get_and_never_stored_itself() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    bench
        .send(request(Method::HEAD, "/v1/info"))
        .await
        .expect("an answer");
    bench.get("/v1/info").await;
    let head = bench
        .send(request(Method::HEAD, "/v1/info"))
        .await
        .expect("an answer");
    assert_eq!(head.headers()["content-length"], "7");
    let (outcome, body) = read(head).await;
    assert_eq!((outcome.cache, body.as_str()), (CacheOutcome::Hit, ""));
    assert_eq!(bench.calls(), 2);
}

#[tokio::test]
async fn directives_of_the_request_are_honoured() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    let ask = |directive: &str| {
        let mut request = get("/v1/info");
        request
            .parts
            .headers
            .insert("cache-control", directive.parse().expect("value"));
        bench.send(request)
    };
    let nothing = ask("only-if-cached").await.expect_err("nothing stored");
    assert_eq!(nothing.kind, FailureKind::OnlyIfCached);
    ask("no-store").await.expect("an answer");
    assert_eq!(
        bench.get("/v1/info").await.1,
        "{\"n\":1}",
        "no-store kept nothing"
    );
    assert_eq!(
        read(ask("no-cache").await.expect("an answer")).await.1,
        "{\"n\":2}"
    );
    assert_eq!(
        bench.get("/v1/info").await.1,
        "{\"n\":2}",
        "no-cache renewed what is stored"
    );
    bench.time.advance(Duration::from_secs(10));
    assert_eq!(
        read(ask("max-age=10").await.expect("an answer")).await.1,
        "{\"n\":2}"
    );
    assert_eq!(
        read(ask("max-age=9").await.expect("an answer")).await.1,
        "{\"n\":3}"
    );
}

#[tokio::test]
async fn different_principals_never_share_and_no_principal_never_stores() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    bench.get("/v1/info").await;
    let mut other = get("/v1/info");
    other.decision.principal = Some(Principal([8; 16]));
    assert_eq!(
        read(bench.send(other).await.expect("an answer")).await.1,
        "{\"n\":1}"
    );
    for expected in ["{\"n\":2}", "{\"n\":3}"] {
        let mut nobody = get("/v1/info");
        nobody.decision.principal = None;
        assert_eq!(
            read(bench.send(nobody).await.expect("an answer")).await.1,
            expected
        );
    }
}

#[tokio::test]
async fn a_get_with_a_body_is_passed_on_and_never_answered_from_memory() {
    let bench = Bench::new(CacheConfig::default(), numbered);
    bench.get("/v1/info").await;
    let with_body = ClassifiedRequest {
        body: Body::from(Bytes::from_static(b"GET /")),
        ..get("/v1/info")
    };
    assert_eq!(
        read(bench.send(with_body).await.expect("an answer")).await.1,
        "{\"n\":1}"
    );
}

#[tokio::test]
async fn a_body_above_the_limit_is_given_whole_and_not_kept() {
    let bench = Bench::new(CacheConfig::default(), |_, _| ok(vec![b'x'; (4 << 20) + 1]));
    assert_eq!(bench.get("/v1/info").await.1.len(), (4 << 20) + 1);
    assert_eq!(bench.get("/v1/info").await.0.cache, CacheOutcome::Miss);
}

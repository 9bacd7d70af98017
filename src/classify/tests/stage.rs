//! The middleware around the decision: bodies, clients, failures.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tower::{Layer, Service, ServiceExt};

use super::{config, decide, ends};
use crate::classify::ClassifyLayer;
use crate::types::ids::{Tag, TagKind};
use crate::types::outcome::{Known, RouteClass};
use crate::types::request::{CacheClass, ClassifiedRequest, Client};
use crate::types::units::Size;
use crate::types::{Body, Failure, FailureKind};

/// Keeps what it is called with. Like many services it may be called only on the clone that was made ready.
#[derive(Default)]
struct Next {
    seen: Arc<Mutex<Option<ClassifiedRequest>>>,
    ready: bool,
}

impl Clone for Next {
    fn clone(&self) -> Self {
        Self {
            seen: self.seen.clone(),
            ready: false,
        }
    }
}

impl Service<ClassifiedRequest> for Next {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = std::future::Ready<Result<Response<Body>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ClassifiedRequest) -> Self::Future {
        assert!(self.ready, "called without having been polled ready");
        *self.seen.lock() = Some(request);
        std::future::ready(Ok(Response::new(Body::Empty)))
    }
}

async fn send(request: Request<Body>) -> Result<ClassifiedRequest, Failure> {
    let mut config = config();
    config.limits.body.generation = Size(64);
    let next = Next::default();
    let seen = next.seen.clone();
    ClassifyLayer::new(&config)
        .unwrap()
        .layer(next)
        .oneshot(request)
        .await?;
    let request = seen.lock().take();
    Ok(request.unwrap())
}

fn stream(chunks: &'static [&'static str]) -> Body {
    let frames = chunks
        .iter()
        .map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

fn chat(length: usize, body: Body) -> Request<Body> {
    Request::post("/v1/chat-messages")
        .header("authorization", "Bearer app-1")
        .header("content-type", "application/json")
        .header("content-length", length)
        .body(body)
        .unwrap()
}

fn user_tag(request: &ClassifiedRequest) -> Tag {
    request.decision.invalidates[0]
}

#[tokio::test]
async fn a_small_json_body_names_the_user_and_goes_on_unchanged() {
    let request = send(chat(25, stream(&["{\"user\":\"u\",", "\"query\":\"hi\"}"])))
        .await
        .unwrap();
    assert_eq!(user_tag(&request), Tag::of(TagKind::Conversations, b"u"));
    let bytes = request.body.collect().await.unwrap().to_bytes();
    assert_eq!(bytes, r#"{"user":"u","query":"hi"}"#);
}

#[tokio::test]
async fn a_body_that_names_no_user_ends_the_conversations_of_all() {
    for (length, body) in [
        (2, stream(&["{}"])),
        (10, stream(&["no json at"])),
        (0, Body::Empty),
    ] {
        let request = send(chat(length, body)).await.unwrap();
        assert_eq!(user_tag(&request), Tag::all(TagKind::Conversations));
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_not_waited_for() {
    let endless = Body::stream(StreamBody::new(futures_util::stream::pending()));
    let mut request = chat(0, endless);
    request.headers_mut().remove("content-length");
    let request = send(request).await.unwrap();
    assert_eq!(user_tag(&request), Tag::all(TagKind::Conversations));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_answer() {
    let broken = [Err(Failure::new(FailureKind::ClientGone, "gone"))];
    let body = Body::stream(StreamBody::new(futures_util::stream::iter(broken)));
    let failure = send(chat(10, body)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ClientGone);
    assert_eq!(failure.outcome.unwrap().template, "/v1/chat-messages");
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_refused_with_what_is_known_of_the_request() {
    let failure = send(chat(65, stream(&["{}"]))).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::BodyTooLarge);
    assert!(
        failure.detail.contains("limits.body.generation"),
        "{}",
        failure.detail
    );
    assert_eq!(failure.outcome.unwrap().class, RouteClass::Generation);
}

#[tokio::test]
async fn a_read_with_a_body_is_never_cached() {
    let read = |body| {
        let request = Request::get("/v1/info").header("authorization", "Bearer app-1");
        request.body(body).unwrap()
    };
    assert_eq!(
        send(read(Body::Empty)).await.unwrap().decision.cache,
        CacheClass::Metadata
    );
    let with_body = send(read(stream(&["{}"]))).await.unwrap();
    assert_eq!(with_body.decision.cache, CacheClass::Never);
    assert!(with_body.decision.fills.is_empty());
}

#[tokio::test]
async fn the_request_carries_its_client_its_start_and_its_decision() {
    let client = Client {
        peer: "10.1.2.3:4".parse().unwrap(),
        tls: true,
        trusted: true,
    };
    let mut request = Request::get("/v1/info?x=%41").header("authorization", "Bearer app-1");
    request.extensions_mut().unwrap().insert(client);
    let request = send(request.body(Body::Empty).unwrap()).await.unwrap();
    assert_eq!(request.client.peer, client.peer);
    assert!(request.client.trusted);
    assert_eq!(request.parts.uri, "/v1/info?x=%41");
    assert_eq!(request.decision.template, "/v1/info");
    let rename = decide("POST /console/api/account/name");
    assert!(
        rename
            .invalidates
            .iter()
            .any(|tag| request.decision.fills.contains(tag))
    );
    assert!(ends(&rename, &decide("GET /v1/info")));
}

#[tokio::test]
async fn a_route_to_nowhere_is_an_error_when_the_layer_is_made() {
    let mut config = config();
    config.routes.push(crate::config::RouteConfig {
        prefix: "/v1".into(),
        upstream: "nobody".into(),
    });
    let error = ClassifyLayer::new(&config).unwrap_err();
    assert!(error.contains("nobody"), "{error}");
}

#[tokio::test]
async fn what_is_decided_is_known_before_there_is_an_answer() {
    // Stops while it waits for the body, and while it waits for the answer.
    for body in [
        Body::stream(StreamBody::new(futures_util::stream::pending())),
        Body::Empty,
    ] {
        let known = Known::default();
        let mut request = chat(5, body);
        request.extensions_mut().insert(known.clone());
        let layer = ClassifyLayer::new(&config()).unwrap();
        let never = |_: ClassifiedRequest| std::future::pending::<Result<Response<Body>, Failure>>();
        let answer = layer.layer(tower::service_fn(never)).oneshot(request);
        assert!(futures_util::FutureExt::now_or_never(answer).is_none());
        let outcome = known.get().unwrap();
        assert_eq!(
            (outcome.class, outcome.template),
            (RouteClass::Generation, "/v1/chat-messages")
        );
        assert!(outcome.principal.is_some());
    }
}

//! The origin behind the proxies, and the bare responder beside them: the same hyper service, the same bytes.
//!
//! The origin runs in a thread of the measuring program and counts what reaches it. The responder is a process of
//! its own on the server's core: the ceiling for anything that is built with hyper.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::rows::{EVENTS, SIZES};

/// Pause between two events of a stream.
const EVENT_PAUSE: Duration = Duration::from_millis(2);

/// What both servers answer with.
pub(crate) struct Answers {
    /// Requests so far, without those of health probes.
    pub(crate) requests: AtomicU64,
    fields: HeaderMap,
    bodies: Vec<(usize, Bytes)>,
    event: Bytes,
}

impl Answers {
    pub(crate) fn new() -> Arc<Self> {
        // With Date and Content-Length, which hyper adds, the eight fields that dify-api sends.
        let fields = [
            (SERVER, "gunicorn"),
            (CONTENT_TYPE, "application/json"),
            (HeaderName::from_static("access-control-allow-origin"), "*"),
            (
                HeaderName::from_static("access-control-expose-headers"),
                "X-Env, X-Trace-Id, X-Version",
            ),
            (HeaderName::from_static("x-version"), "1.12.1"),
            (HeaderName::from_static("x-env"), "PRODUCTION"),
        ];
        let bodies = SIZES.map(|size| {
            let (head, tail) = ("{\"opening_statement\": \"", "\"}\n");
            let filling = "a".repeat(size - head.len() - tail.len());
            (size, Bytes::from(format!("{head}{filling}{tail}")))
        });
        let text = "w".repeat(80);
        let event = format!(
            "data: {{\"event\": \"message\", \"task_id\": \"5f0c\", \"message_id\": \"9c1e\", \"answer\": \"{text}\"}}\n\n"
        );
        Arc::new(Self {
            requests: AtomicU64::new(0),
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, HeaderValue::from_static(value)))
                .collect(),
            bodies: bodies.into(),
            event: event.into(),
        })
    }

    fn sized(&self, query: &str) -> Bytes {
        let size = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("size=")?.parse().ok())
            .unwrap_or(SIZES[0]);
        let body = self.bodies.iter().find(|(length, _)| *length == size);
        body.map(|(_, body)| body.clone()).unwrap_or_default()
    }

    fn plain(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let body = self.sized(request.uri().query().unwrap_or_default());
        let mut response = Response::new(Full::new(body));
        response.headers_mut().clone_from(&self.fields);
        response
    }

    fn events(&self) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let event = self.event.clone();
        let events = stream::unfold(0, move |sent| {
            let event = event.clone();
            async move {
                if sent == EVENTS {
                    return None;
                }
                tokio::time::sleep(EVENT_PAUSE).await;
                Some((Ok(Frame::data(event)), sent + 1))
            }
        });
        let mut response = Response::new(StreamBody::new(events).boxed_unsync());
        response.headers_mut().clone_from(&self.fields);
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

/// Serves as the origin until the process ends; never returns.
pub(crate) fn serve_origin(listener: std::net::TcpListener, answers: Arc<Answers>) {
    block_on(async move {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let answers = answers.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answers = answers.clone();
                async move {
                    if request.uri().path() != "/health" {
                        answers.requests.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, Infallible>(if request.uri().path() == "/v1/chat-messages" {
                        answers.events()
                    } else {
                        answers.plain(&request).map(BodyExt::boxed_unsync)
                    })
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
}

/// Serves as the bare responder, HTTP/1.1 on one port and HTTP/2 on the other; never returns.
pub(crate) fn serve_bare(h1: u16, h2: u16) {
    block_on(async move {
        let answers = Answers::new();
        let (Ok(h1), Ok(h2)) = (
            TcpListener::bind(("127.0.0.1", h1)).await,
            TcpListener::bind(("127.0.0.1", h2)).await,
        ) else {
            return;
        };
        loop {
            let (accepted, second) = tokio::select! {
                accepted = h1.accept() => (accepted, false),
                accepted = h2.accept() => (accepted, true),
            };
            let Ok((stream, _)) = accepted else { continue };
            let _ = stream.set_nodelay(true);
            let answers = answers.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answers.plain(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let stream = TokioIo::new(stream);
            if second {
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service));
            } else {
                tokio::spawn(http1::Builder::new().serve_connection(stream, service));
            }
        }
    });
}

fn block_on(work: impl Future<Output = ()>) {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        runtime.block_on(work);
    }
}

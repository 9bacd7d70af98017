//! The stage with a tiny stack behind it: over memory with paused time, over sockets where the system matters.

mod h1;
mod h2;
mod net;
mod recall;
mod time;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::access_log::Ledger;
use super::connection::{self, Shared, Spoken};
use super::metrics::WireMetrics;
use super::recall::Recall;
use super::screen::Transport;
use crate::config::{AccessLog, Config};
use crate::types::ids::Principal;
use crate::types::outcome::{CacheOutcome, Known, Phases, RouteClass};
use crate::types::request::Client;
use crate::types::time::Clock;
use crate::types::units::{Size, Span};
use crate::types::{Body, Failure, FailureKind, Outcome};

impl Transport for DuplexStream {}

/// Limits that a test reaches quickly.
fn config() -> Config {
    let mut config = Config::default();
    config.listen[0].address.set_port(0);
    config.limits.header_count = 20;
    config.limits.header_bytes = Size(1024);
    config.limits.uri_bytes = Size(256);
    config.limits.header_read = Span::secs(10);
    config.limits.idle = Span::secs(75);
    config.limits.h2_resets = 8;
    config.log.access = AccessLog::All;
    config
}

/// The stage's shared parts without listeners.
struct Rig {
    shared: Arc<Shared>,
    registry: prometheus::Registry,
}

impl Rig {
    fn new() -> Self {
        let registry = prometheus::Registry::new();
        let config = config();
        let metrics = WireMetrics::register(&registry).unwrap();
        let shared = Shared {
            limits: Arc::new(config.limits),
            ledger: Arc::new(Ledger::new(metrics, Clock::System, &config.log)),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            recall: Arc::new(Recall::new()),
        };
        Self {
            shared: Arc::new(shared),
            registry,
        }
    }

    /// A connection over memory.
    fn connect(&self) -> Peer<DuplexStream> {
        self.connect_through(1 << 20)
    }

    fn connect_through(&self, capacity: usize) -> Peer<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(capacity);
        self.serve(theirs);
        Peer::new(ours)
    }

    fn serve(&self, io: impl Transport) {
        let shared = self.shared.clone();
        let client = Client {
            peer: ([192, 0, 2, 1], 1234).into(),
            tls: false,
            trusted: false,
        };
        tokio::spawn(async move {
            let stack = tower::service_fn(app);
            connection::drive(io, Spoken::Unknown, client, None, stack, &shared).await;
        });
    }

    /// The value of a metric, summed over the series whose labels contain all of `labels`.
    fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(&self.registry, name, labels)
    }
}

fn metric(registry: &prometheus::Registry, name: &str, labels: &[&str]) -> f64 {
    let families = registry.gather();
    let series = families.iter().filter(|family| family.name() == name);
    series
        .flat_map(|family| family.get_metric())
        .filter(|metric| {
            labels
                .iter()
                .all(|label| metric.get_label().iter().any(|pair| pair.value() == *label))
        })
        .map(|metric| {
            metric.get_counter().get_value()
                + metric.get_gauge().get_value()
                + metric.get_histogram().get_sample_count() as f64
        })
        .sum()
}

fn now() -> tokio::time::Instant {
    Clock::System.now().monotonic
}

/// A stack that does what the path says.
async fn app(request: Request<Body>) -> Result<Response<Body>, Failure> {
    let (parts, mut body) = request.into_parts();
    let query = parts.uri.query().unwrap_or("").to_owned();
    let length = |headers: &HeaderMap| headers.get(header::CONTENT_LENGTH).cloned();
    match parts.uri.path() {
        "/hello" => {
            let mut response = Response::new(Body::Full("hello".into()));
            response.extensions_mut().insert(outcome(CacheOutcome::Hit));
            Ok(response)
        }
        // Says who asks for what, and goes on without end.
        "/known" => {
            parts
                .extensions
                .get::<Known>()
                .unwrap()
                .set(outcome(CacheOutcome::None));
            std::future::pending().await
        }
        // So many bytes that are at hand.
        "/full" => Ok(Response::new(Body::Full(
            vec![b'x'; query.parse().unwrap()].into(),
        ))),
        // Answers when so many bytes of the body are here, and holds on to the body.
        "/early" => {
            let mut missing: usize = query.parse().unwrap();
            while missing > 0 {
                missing -= body.frame().await.unwrap()?.into_data().unwrap().len();
            }
            tokio::spawn(async move {
                sleep(Duration::from_secs(1000)).await;
                drop(body);
            });
            Ok(Response::new(Body::Full("early".into())))
        }
        "/slow" => {
            let seconds = query.parse().unwrap_or(1);
            sleep(Duration::from_secs(seconds)).await;
            Ok(Response::new(Body::Full("slow".into())))
        }
        // Does not look at the body.
        "/ignore" => Ok(Response::new(Body::Full("ignored".into()))),
        "/refuse" => Err(Failure::new(FailureKind::BodyTooLarge, "too long")),
        "/echo" => {
            let taken = body.collect().await?;
            let trailers = taken.trailers().cloned();
            let mut text = taken.to_bytes().to_vec();
            for (name, value) in trailers.iter().flatten() {
                text.extend_from_slice(format!("|{name}={}", value.to_str().unwrap()).as_bytes());
            }
            Ok(Response::new(Body::Full(text.into())))
        }
        "/head" => {
            let client = parts.extensions.get::<Client>().copied();
            let mut text = format!("{} {} {}\n", parts.method, parts.uri, client.unwrap().ip());
            for (name, value) in &parts.headers {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            Ok(Response::new(Body::Full(text.into())))
        }
        // Says of a body that broke off no more than an upstream's client would.
        "/hide" => match body.collect().await {
            Ok(_) => Ok(Response::new(Body::Empty)),
            Err(_) => Err(Failure::new(FailureKind::UpstreamReset, "hidden").sent()),
        },
        // Parts a second apart, then trailers.
        "/stream" => {
            let parts = query.parse().unwrap_or(3);
            let body = stream::unfold(0, move |at| async move {
                sleep(Duration::from_secs(u64::from(at > 0))).await;
                let frame = match at {
                    at if at < parts => Frame::data(Bytes::from("data: x\n\n")),
                    at if at == parts => {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("x-checksum", HeaderValue::from_static("42"));
                        Frame::trailers(trailers)
                    }
                    _ => return None,
                };
                Some((Ok(frame), at + 1))
            });
            let mut response = Response::new(streaming(body));
            let headers = response.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/event-stream"),
            );
            headers.insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
            Ok(response)
        }
        // Breaks off after five bytes; the announced length is that of the request's `x-length`.
        "/fail" => {
            let broken = || Failure::new(FailureKind::UpstreamReset, "broken");
            let body = stream::iter([Ok(Frame::data(Bytes::from("12345"))), Err(broken())]);
            let mut response = Response::new(streaming(body));
            if let Some(announced) = parts.headers.get("x-length") {
                response
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, announced.clone());
            }
            Ok(response)
        }
        "/big" => Ok(Response::new(streaming(stream::repeat_with(|| {
            Ok(Frame::data(Bytes::from_static(&[b'x'; 1 << 16])))
        })))),
        "/upgrade" => upgrade::agree(parts),
        "/odd" => {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            Ok(response)
        }
        _ => {
            assert!(
                length(&parts.headers).is_none(),
                "an unexpected request: {parts:?}"
            );
            Err(Failure::new(FailureKind::NoRoute, "no such route"))
        }
    }
}

fn outcome(cache: CacheOutcome) -> Outcome {
    Outcome {
        class: RouteClass::Metadata,
        template: "/hello",
        cache,
        principal: Some(Principal([0xab; 16])),
        phases: Phases::default(),
    }
}

fn streaming<S>(frames: S) -> Body
where
    S: Stream<Item = Result<Frame<Bytes>, Failure>> + Send + 'static,
{
    Body::stream(StreamBody::new(Box::pin(frames)))
}

/// The client's end of a connection.
struct Peer<IO> {
    io: IO,
    read: Vec<u8>,
}

/// An answer as it came.
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Peer<IO> {
    fn new(io: IO) -> Self {
        Self { io, read: Vec::new() }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.io.write_all(text.as_ref()).await.unwrap();
    }

    /// Reads until `found` gives something of what is there.
    async fn until<T>(&mut self, mut found: impl FnMut(&[u8]) -> Option<(usize, T)>) -> T {
        loop {
            if let Some((taken, what)) = found(&self.read) {
                self.read.drain(..taken);
                return what;
            }
            let read = self.io.read_buf(&mut self.read).await.unwrap();
            let rest = String::from_utf8_lossy(&self.read);
            assert!(read > 0, "the connection ended after {rest:?}");
        }
    }

    async fn head(&mut self) -> String {
        self.until(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let end = text.find("\r\n\r\n")? + 4;
            Some((end, text[..end].to_owned()))
        })
        .await
    }

    async fn reply(&mut self) -> Reply {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let body = match length.map(|text| text.parse::<usize>().unwrap()) {
            Some(length) => {
                self.until(|bytes| {
                    Some((length, bytes.get(..length)?.to_vec())).filter(|_| bytes.len() >= length)
                })
                .await
            }
            None if head.contains("Transfer-Encoding: chunked") => {
                self.until(|bytes| {
                    let text = String::from_utf8_lossy(bytes);
                    let last = text.find("0\r\n")?;
                    let end = text[last..].find("\r\n\r\n")? + last + 4;
                    Some((end, bytes[..end].to_vec()))
                })
                .await
            }
            None => Vec::new(),
        };
        Reply {
            status: head[9..12].parse().unwrap(),
            body: String::from_utf8(body).unwrap(),
            head,
        }
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let _ = self.io.read_to_end(&mut self.read).await;
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    async fn get(&mut self, target: &str) -> Reply {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
            .await;
        self.reply().await
    }

    /// An answer that refuses, after which the connection ends.
    async fn refusal(&mut self) -> (u16, String) {
        let reply = self.reply().await;
        let json: serde_json::Value = serde_json::from_str(&reply.body).expect(&reply.body);
        assert_eq!(json["status"], reply.status);
        assert!(json["code"].is_string(), "{json}");
        assert!(
            reply.head.contains("Content-Type: application/json\r\n"),
            "{}",
            reply.head
        );
        assert!(reply.head.contains("\r\nConnection: close\r\n"), "{}", reply.head);
        assert_eq!(self.rest().await, "");
        (reply.status, json["message"].as_str().unwrap().to_owned())
    }

    /// An HTTP/2 client on this connection.
    async fn h2(self) -> hyper::client::conn::http2::SendRequest<Body> {
        let (client, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            TokioIo::new(self.io),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        client
    }
}

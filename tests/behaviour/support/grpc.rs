//! A gRPC server and client (tonic) whose messages are plain bytes, so that nothing has to be generated.
//!
//! What a call does stands in its first message: `fail:CODE` ends it so, `fail-late:CODE` after a message,
//! `count:N` answers with so many messages, `hang` never ends, `gate` waits for [`Server::gate`]; anything else is
//! answered with the server's name and itself.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::raw::Raw;

/// What a server has seen.
pub struct Seen {
    name: &'static str,
    calls: AtomicUsize,
    probes: AtomicUsize,
    cancelled: AtomicUsize,
    ill: AtomicBool,
    /// What `gate` waits for.
    pub gate: Semaphore,
}

/// A running server; all of it ends when this is dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    /// Starts one that says `name`, perhaps behind TLS.
    pub async fn start(name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let seen = Arc::new(Seen {
            name,
            calls: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            ill: AtomicBool::new(false),
            gate: Semaphore::new(0),
        });
        let shared = seen.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket");
                let (seen, tls) = (shared.clone(), tls.clone());
                connections.spawn(async move {
                    let serve = service_fn(move |request| answer(seen.clone(), request));
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.max_concurrent_streams(1000);
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), serve).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else {
                                return;
                            };
                            drop(builder.serve_connection(TokioIo::new(stream), serve).await);
                        }
                    }
                });
            }
        });
        Self {
            address,
            seen,
            accepting,
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::SeqCst)
    }

    /// Probes so far, by whichever question.
    pub fn probes(&self) -> usize {
        self.seen.probes.load(Ordering::SeqCst)
    }

    /// Calls that were cancelled.
    pub fn cancelled(&self) -> usize {
        self.seen.cancelled.load(Ordering::SeqCst)
    }

    /// Whether it says that it is well.
    pub fn set_well(&self, well: bool) {
        self.seen.ill.store(!well, Ordering::SeqCst);
    }

    /// Lets so many through that wait.
    pub fn open_gate(&self, number: usize) {
        self.seen.gate.add_permits(number);
    }

    /// Cuts all connections, and takes no more.
    pub fn kill(&self) {
        self.accepting.abort();
    }
}

/// Notices that a call is dropped before it has ended.
struct Noticing(Arc<Seen>, bool);

impl Drop for Noticing {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type Answers = BoxStream<'static, Result<Bytes, Status>>;

async fn answer(
    seen: Arc<Seen>,
    request: http::Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    if request.uri().path().starts_with("/test.Echo/") {
        seen.calls.fetch_add(1, Ordering::SeqCst);
    } else {
        seen.probes.fetch_add(1, Ordering::SeqCst);
    }
    let mut grpc = tonic::server::Grpc::new(Raw);
    Ok(match request.uri().path() {
        "/test.Echo/Unary" => {
            let unary = tower::service_fn(move |request: Request<Bytes>| say(seen.clone(), request));
            grpc.unary(unary, request).await
        }
        "/test.Echo/ServerStream" => {
            let many = tower::service_fn(move |request: Request<Bytes>| {
                let seen = seen.clone();
                async move { Ok::<_, Status>(Response::new(messages(&seen, &request.into_inner()))) }
            });
            grpc.server_streaming(many, request).await
        }
        "/test.Echo/ClientStream" => {
            let all = tower::service_fn(|request: Request<Streaming<Bytes>>| async move {
                let mut messages = request.into_inner();
                let mut all = Vec::new();
                while let Some(message) = messages.message().await? {
                    all.extend_from_slice(&message);
                }
                Ok::<_, Status>(Response::new(Bytes::from(all)))
            });
            grpc.client_streaming(all, request).await
        }
        "/test.Echo/Both" => {
            let both = tower::service_fn(move |request: Request<Streaming<Bytes>>| {
                let noticing = Noticing(seen.clone(), false);
                async move {
                    let messages = request.into_inner();
                    let answers =
                        stream::unfold((messages, noticing), |(mut messages, mut noticing)| async {
                            let message = messages.message().await.transpose();
                            noticing.1 = message.is_none();
                            Some((message?, (messages, noticing)))
                        });
                    Ok::<_, Status>(Response::new(answers.boxed() as Answers))
                }
            });
            grpc.streaming(both, request).await
        }
        "/grpc.health.v1.Health/Check" => {
            let word = if seen.ill.load(Ordering::SeqCst) {
                &[8, 2]
            } else {
                &[8, 1]
            };
            let well = tower::service_fn(move |_: Request<Bytes>| async move {
                Ok::<_, Status>(Response::new(Bytes::from_static(word)))
            });
            grpc.unary(well, request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    })
}

async fn say(seen: Arc<Seen>, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let asked = request.metadata().get("x-ask").cloned();
    let message = request.into_inner();
    let mut noticing = Noticing(seen.clone(), false);
    if let Some(code) = message.strip_prefix(b"fail:") {
        noticing.1 = true;
        return Err(failure(code));
    }
    match &message[..] {
        b"hang" => std::future::pending().await,
        b"gate" => seen.gate.acquire().await.expect("a gate").forget(),
        _ => {}
    }
    noticing.1 = true;
    let mut response = Response::new([seen.name.as_bytes(), b" ", &message].concat().into());
    if let Some(asked) = asked {
        response.metadata_mut().insert("x-answer", asked);
    }
    Ok(response)
}

fn failure(code: &[u8]) -> Status {
    let code = std::str::from_utf8(code).expect("a number").parse::<i32>();
    let mut status = Status::new(Code::from(code.expect("a number")), "as you like: 100 %");
    status
        .metadata_mut()
        .insert("x-why", "because".parse().expect("a value"));
    status
}

fn messages(seen: &Arc<Seen>, asked: &Bytes) -> Answers {
    let first = stream::iter([Ok(Bytes::from(seen.name))]);
    if let Some(code) = asked.strip_prefix(b"fail-late:") {
        return first.chain(stream::iter([Err(failure(code))])).boxed();
    }
    if let Some(number) = asked.strip_prefix(b"count:") {
        let number: usize = std::str::from_utf8(number)
            .expect("a number")
            .parse()
            .expect("a number");
        return stream::iter((0..number).map(|number| Ok(Bytes::from(number.to_string())))).boxed();
    }
    let noticing = Noticing(seen.clone(), false);
    let hanging = stream::once(async move {
        let _noticing = noticing;
        std::future::pending().await
    });
    first.chain(hanging).boxed()
}

/// One connection of a client.
#[derive(Clone)]
pub struct Client(Channel);

impl Client {
    /// Connects in clear.
    pub async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self(
            super::within("a connection", endpoint.connect())
                .await
                .expect("HTTP/2"),
        )
    }

    async fn ready(&self) -> tonic::client::Grpc<Channel> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.expect("a connection that is open");
        grpc
    }

    /// One message for one.
    pub async fn unary(&self, request: Request<&'static str>) -> Result<Response<Bytes>, Status> {
        let request = request.map(|message| Bytes::from_static(message.as_bytes()));
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        super::within("an answer", self.ready().await.unary(request, path, Raw)).await
    }

    /// The same in short.
    pub async fn ask(&self, message: &'static str) -> Result<String, Status> {
        let answer = self.unary(Request::new(message)).await?;
        Ok(String::from_utf8(answer.into_inner().to_vec()).expect("text"))
    }

    /// Many messages for one.
    pub async fn server_stream(&self, message: &'static str) -> Result<Streaming<Bytes>, Status> {
        let request = Request::new(Bytes::from_static(message.as_bytes()));
        let path = PathAndQuery::from_static("/test.Echo/ServerStream");
        let answer = self.ready().await.server_streaming(request, path, Raw).await?;
        Ok(answer.into_inner())
    }

    /// One message for many.
    pub async fn client_stream(
        &self,
        messages: impl stream::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Bytes, Status> {
        let path = PathAndQuery::from_static("/test.Echo/ClientStream");
        let call = async {
            let mut grpc = self.ready().await;
            grpc.client_streaming(Request::new(messages), path, Raw).await
        };
        Ok(super::within("an answer", call).await?.into_inner())
    }

    /// Messages both ways.
    pub async fn both(
        &self,
        messages: impl stream::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let path = PathAndQuery::from_static("/test.Echo/Both");
        let call = async {
            let mut grpc = self.ready().await;
            grpc.streaming(Request::new(messages), path, Raw).await
        };
        Ok(super::within("an answer", call).await?.into_inner())
    }
}

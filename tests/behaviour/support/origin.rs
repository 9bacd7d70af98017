//! A scripted origin: for each request a closure says, action by action, what is done on the wire.
//!
//! It remembers what it was asked and counts connections, so that a test can say what never arrived.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::wire::{self, Buffered, Fields, Framing};
use super::within;

/// Bodies are remembered up to this length; `body_length` counts all.
const KEPT_BODY: usize = 1 << 20;

/// One step of an answer.
#[derive(Debug, Clone)]
pub enum Action {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Waits for a notification; ends when the peer leaves before.
    Wait(Arc<Notify>),
    /// Resets the connection.
    Abort,
    /// Closes the connection.
    Close,
    /// Sends back whatever comes until the peer ends.
    Echo,
}

/// The steps of an answer.
pub type Script = Vec<Action>;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Target, as sent.
    pub target: String,
    /// `HTTP/1.1`.
    pub version: String,
    /// Fields in order.
    pub fields: Fields,
    /// Content, at most the first MiB.
    pub body: Vec<u8>,
    /// Length of the whole content.
    pub body_length: u64,
    /// Trailer fields.
    pub trailers: Fields,
}

impl Seen {
    /// The only value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        wire::value(&self.fields, name)
    }

    /// Method and target.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Requests that were read whole.
    pub requests: usize,
    /// Request heads that were read.
    pub heads: usize,
    /// Connections ever made.
    pub connections: usize,
    /// Peers that left while an answer was under way.
    pub left: usize,
    /// Bytes of request content.
    pub body_bytes: u64,
}

/// How an origin behaves besides its script.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Closes a connection after so many answers, without saying so.
    pub close_after: Option<usize>,
    /// Closes a connection that was idle for so long.
    pub idle_close: Option<Duration>,
    /// Reads no content before it is notified once for each request.
    pub hold_body: Option<Arc<Notify>>,
    /// Whether requests are not remembered.
    pub forget: bool,
    /// Connections that are accepted at once; others wait in the kernel, as before a gunicorn with so many.
    pub slots: Option<usize>,
}

type Answering = dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Script> + Send>> + Send + Sync;

struct Shared {
    answering: Box<Answering>,
    options: Options,
    seen: Mutex<Vec<Seen>>,
    stopped: watch::Sender<bool>,
    counts: watch::Sender<Counts>,
}

/// A running origin; ends when dropped.
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    /// Answers with what `answering` says.
    pub async fn start<F, Fut>(answering: F) -> Self
    where
        F: Fn(Seen) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Script> + Send + 'static,
    {
        Self::start_with(Options::default(), answering).await
    }

    /// The same with options.
    pub async fn start_with<F, Fut>(options: Options, answering: F) -> Self
    where
        F: Fn(Seen) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Script> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), options, answering).await
    }

    /// The same at an address that may have been used a moment ago.
    pub async fn start_at<F, Fut>(address: SocketAddr, options: Options, answering: F) -> Self
    where
        F: Fn(Seen) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Script> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind(address).expect("a free address");
        let listener = socket.listen(2048).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            answering: Box::new(move |seen| Box::pin(answering(seen))),
            options,
            seen: Mutex::default(),
            stopped: watch::Sender::new(false),
            counts: watch::Sender::new(Counts::default()),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            task,
        }
    }

    /// The requests so far, probes of the health check left out.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Method and target of the requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.shared.seen.lock().iter().map(Seen::line).collect()
    }

    /// From now on reads and answers nothing, as a process that was stopped: connections are still made.
    pub fn stop(&self) {
        self.shared.stopped.send_replace(true);
    }

    /// Goes on where it stopped.
    pub fn go_on(&self) {
        self.shared.stopped.send_replace(false);
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until `enough` holds.
    pub async fn until(&self, what: &str, mut enough: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        *within(what, counts.wait_for(|counts| enough(counts)))
            .await
            .expect("the origin runs")
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the origin, as those of a killed process do.
    let mut connections = tokio::task::JoinSet::new();
    let slots = Arc::new(Semaphore::new(
        shared.options.slots.unwrap_or(Semaphore::MAX_PERMITS),
    ));
    loop {
        let slot = slots.clone().acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        shared.counts.send_modify(|counts| counts.connections += 1);
        let serving = serve(stream, shared.clone());
        connections.spawn(async move {
            let _slot = slot;
            serving.await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut stream = Buffered::new(stream);
    let mut answered = 0;
    loop {
        let head = match shared.options.idle_close {
            // A connection that has just been made is not idle yet.
            Some(limit) if answered > 0 => match tokio::time::timeout(limit, stream.more_or_held()).await {
                Err(_) | Ok(Ok(false)) => return,
                Ok(_) => stream.head().await,
            },
            _ => stream.head().await,
        };
        let Ok(Some(head)) = head else { return };
        let mut stopped = shared.stopped.subscribe();
        if stopped.wait_for(|stopped| !stopped).await.is_err() {
            return;
        }
        let mut words = head.line.split(' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let seen = Seen {
            method: word(),
            target: word(),
            version: word(),
            fields: head.fields.clone(),
            body: Vec::new(),
            body_length: 0,
            trailers: Fields::new(),
        };
        if seen.field("user-agent") == Some("dify-edge-probe") {
            if send(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await
                .is_err()
            {
                return;
            }
            continue;
        }
        shared.counts.send_modify(|counts| counts.heads += 1);
        let framing = head.framing().unwrap_or(Framing::Length(0));
        let Ok(seen) = with_body(&mut stream, seen, framing, &shared).await else {
            return;
        };
        if !shared.options.forget {
            shared.seen.lock().push(seen.clone());
        }
        shared.counts.send_modify(|counts| counts.requests += 1);
        let script = (shared.answering)(seen).await;
        for action in script {
            if perform(&mut stream, action, &shared).await.is_err() {
                return;
            }
        }
        answered += 1;
        if shared.options.close_after.is_some_and(|limit| answered >= limit) {
            return;
        }
    }
}

async fn with_body(
    stream: &mut Buffered<TcpStream>,
    mut seen: Seen,
    framing: Framing,
    shared: &Shared,
) -> io::Result<Seen> {
    if seen.field("expect").is_some() {
        send(stream, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    if let Some(go_on) = &shared.options.hold_body {
        go_on.notified().await;
    }
    let mut keep = |data: &[u8]| {
        let room = KEPT_BODY - seen.body.len();
        seen.body.extend_from_slice(&data[..data.len().min(room)]);
        seen.body_length += data.len() as u64;
        shared
            .counts
            .send_modify(|counts| counts.body_bytes += data.len() as u64);
    };
    match framing {
        Framing::Length(length) => {
            let mut left = length;
            while left > 0 {
                let data = stream.some(left.min(64 * 1024) as usize).await?;
                left -= data.len() as u64;
                keep(&data);
            }
        }
        Framing::Chunked => {
            while let Some(data) = stream.chunk().await? {
                keep(&data);
            }
            seen.trailers = stream.fields().await?;
        }
        Framing::UntilClose => {}
    }
    Ok(seen)
}

/// # Errors
/// When the connection is over.
async fn perform(stream: &mut Buffered<TcpStream>, action: Action, shared: &Shared) -> io::Result<()> {
    let over = || Err(io::ErrorKind::ConnectionAborted.into());
    match action {
        Action::Send(bytes) => {
            let sent = send(stream, &bytes).await;
            if sent.is_err() {
                shared.counts.send_modify(|counts| counts.left += 1);
            }
            sent
        }
        Action::Wait(go_on) => tokio::select! {
            biased;
            () = go_on.notified() => Ok(()),
            more = stream.more() => match more {
                Ok(true) => {
                    go_on.notified().await;
                    Ok(())
                }
                _ => {
                    shared.counts.send_modify(|counts| counts.left += 1);
                    over()
                }
            },
        },
        Action::Abort => {
            let _ = socket2::SockRef::from(&stream.socket).set_linger(Some(Duration::ZERO));
            over()
        }
        Action::Close => {
            let _ = stream.socket.shutdown().await;
            over()
        }
        Action::Echo => {
            let held = stream.held().to_vec();
            send(stream, &held).await?;
            let mut buffer = vec![0; 16 * 1024];
            loop {
                match stream.socket.read(&mut buffer).await {
                    Ok(0) | Err(_) => {
                        shared.counts.send_modify(|counts| counts.left += 1);
                        let _ = stream.socket.shutdown().await;
                        return over();
                    }
                    Ok(length) => send(stream, &buffer[..length]).await?,
                }
            }
        }
    }
}

async fn send(stream: &mut Buffered<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.socket.write_all(bytes).await
}

impl Buffered<TcpStream> {
    async fn more_or_held(&mut self) -> io::Result<bool> {
        Ok(!self.held().is_empty() || self.more().await?)
    }
}

/// A whole answer with a length.
pub fn answer(status: u16, fields: &[(&str, &str)], body: impl AsRef<[u8]>) -> Script {
    let body = body.as_ref();
    let mut text = format!("HTTP/1.1 {status} {}\r\nServer: gunicorn\r\n", reason(status));
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    vec![Action::Send(bytes)]
}

/// A whole answer of JSON.
pub fn json(status: u16, body: impl AsRef<[u8]>) -> Script {
    answer(status, &[("Content-Type", "application/json")], body)
}

/// The head of an answer in chunks.
pub fn chunked(fields: &[(&str, &str)]) -> Action {
    let mut text = String::from("HTTP/1.1 200 OK\r\nServer: gunicorn\r\nTransfer-Encoding: chunked\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    Action::Send(text.into_bytes())
}

/// The head of an event stream.
pub fn events() -> Action {
    chunked(&[("Content-Type", "text/event-stream; charset=utf-8")])
}

/// One chunk.
pub fn chunk(data: impl AsRef<[u8]>) -> Action {
    let data = data.as_ref();
    let mut bytes = format!("{:x}\r\n", data.len()).into_bytes();
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\r\n");
    Action::Send(bytes)
}

/// The chunk that ends it.
pub fn last_chunk() -> Action {
    Action::Send(b"0\r\n\r\n".to_vec())
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Some Reason")
}

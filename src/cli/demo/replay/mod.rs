//! An upstream that replays captured exchanges with their timing and the limits of a stock dify-api.
//!
//! It serves only so many requests at once (`slots`); the others wait in the order in which they came, and how many
//! wait is the backlog that the demo compares. Bytes go out as captured. The demo and tests start it.

mod matching;
mod message;
mod record;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::types::time::Clock;

use matching::Library;
use message::{Connection, Request, response_head};
pub use record::{CapturedRequest, CapturedResponse, Chunk, Content, Fields, Framing, Record, records};

/// How many connections may wait to be accepted, as gunicorn has it.
const LISTEN_BACKLOG: u32 = 2048;
/// How many different targets are counted one by one; further ones are only in the total.
const MOST_TARGETS: usize = 10_000;

/// How a replay behaves.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Requests that are served at once. Default 10.
    pub slots: usize,
    /// A connection that is idle after an answer is closed after this; `None` keeps it. Default 2 s, as gunicorn.
    pub idle_close: Option<Duration>,
    /// What captured times are multiplied with; 0 answers at once. Default 1.
    pub time_scale: f64,
    /// Where to listen. Default an ephemeral port of 127.0.0.1.
    pub address: Option<SocketAddr>,
    /// Whether `Date` is the present time instead of the captured one. Default no.
    pub fresh_date: bool,
    /// Who is told what is carried out. Default nobody.
    pub witness: Option<Witness>,
}

/// Is told of requests that carry a field, once each has its slot and before anything of its answer is sent.
#[derive(Clone)]
pub struct Witness {
    /// The name of the field.
    pub field: &'static str,
    /// Is called with its value.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness of {}", self.field)
    }
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            slots: 10,
            idle_close: Some(Duration::from_secs(2)),
            time_scale: 1.0,
            address: None,
            fresh_date: false,
            witness: None,
        }
    }
}

/// What a replay has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that came, health probes too.
    pub requests: u64,
    /// The same by method and target (path and query).
    pub by_target: HashMap<(String, String), u64>,
    /// Being served now.
    pub in_flight: u64,
    /// Waiting for a slot now.
    pub backlog: u64,
    /// The most that ever waited at the same time.
    pub longest_backlog: u64,
    /// Responses that the client did not wait for.
    pub aborted: u64,
}

/// A running replay; dropping it closes its listener and connections.
#[derive(Debug)]
pub struct Replay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    library: Library,
    options: ReplayOptions,
    /// The bits of `options.time_scale`, which can be changed.
    time_scale: AtomicU64,
    slots: Semaphore,
    state: Mutex<Counters>,
    backlog: Gauge,
    in_flight: Gauge,
}

#[derive(Debug, Default)]
struct Gauge {
    now: AtomicU64,
    most: AtomicU64,
}

/// One that is counted in a [`Gauge`] until it is dropped.
struct Counted<'a>(&'a Gauge);

impl Gauge {
    fn enter(&self) -> Counted<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Counted(self)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replay {
    /// Listens and answers with `records` until it is dropped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(records: Vec<Record>, options: ReplayOptions) -> io::Result<Self> {
        let listener = listen(options.address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            library: Library::new(records),
            slots: Semaphore::new(options.slots.clamp(1, Semaphore::MAX_PERMITS)),
            time_scale: AtomicU64::new(options.time_scale.to_bits()),
            options,
            state: Mutex::default(),
            backlog: Gauge::default(),
            in_flight: Gauge::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen so far.
    pub fn counters(&self) -> Counters {
        Counters {
            in_flight: self.shared.in_flight.now.load(Ordering::Relaxed),
            backlog: self.shared.backlog.now.load(Ordering::Relaxed),
            longest_backlog: self.shared.backlog.most.load(Ordering::Relaxed),
            ..self.shared.state.lock().clone()
        }
    }

    /// From now on captured times are multiplied with `scale`.
    pub fn set_time_scale(&self, scale: f64) {
        self.shared.time_scale.store(scale.to_bits(), Ordering::Relaxed);
    }

    /// Forgets what was counted; what is in flight or waits stays counted.
    pub fn reset(&self) {
        *self.shared.state.lock() = Counters::default();
        let backlog = &self.shared.backlog;
        backlog
            .most
            .store(backlog.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An accept that fails concerns one client (or a lack of descriptors, which passes).
                if let Ok((stream, _)) = accepted {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(converse(Connection::new(stream), shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(mut connection: Connection, shared: Arc<Shared>) {
    let mut answered = false;
    loop {
        let begun = match shared.options.idle_close.filter(|_| answered) {
            Some(limit) => tokio::time::timeout(limit, connection.readable())
                .await
                .unwrap_or(false),
            None => connection.readable().await,
        };
        if !begun {
            break;
        }
        let Ok(request) = connection.request().await else {
            break;
        };
        if !shared.answer(&mut connection, &request).await {
            break;
        }
        answered = true;
    }
    connection.finish().await;
}

/// How an answer ended.
enum End {
    Kept,
    Closed,
    Aborted,
}

impl Shared {
    /// Answers when a slot is free; `false` when the connection is over.
    async fn answer(&self, connection: &mut Connection, request: &Request) -> bool {
        self.count(request);
        let slot = match self.slots.try_acquire() {
            Ok(slot) => Ok(slot),
            Err(_) => {
                let _waiting = self.backlog.enter();
                self.slots.acquire().await
            }
        };
        // The semaphore is never closed.
        let Ok(_slot) = slot else { return false };
        let _serving = self.in_flight.enter();
        if let Some(witness) = &self.options.witness
            && let Some(value) = request.field(witness.field)
        {
            (witness.tell)(&value);
        }
        let end = match self.library.find(request) {
            Some(record) => self.replay(connection, record).await,
            None => match connection.write(&unmatched(request, &self.library)).await {
                Ok(()) => End::Kept,
                Err(_) => End::Aborted,
            },
        };
        match end {
            End::Kept => !request.closes(),
            End::Closed => false,
            End::Aborted => {
                self.state.lock().aborted += 1;
                false
            }
        }
    }

    async fn replay(&self, connection: &mut Connection, record: &Record) -> End {
        let start = Clock::System.now().monotonic;
        let response = &record.response;
        let date = self.options.fresh_date.then(|| Clock::System.now().wall);
        let head = response_head(response, date);
        match self.send(connection, record, start, head).await {
            Err(_) => End::Aborted,
            Ok(()) if response.framing == Framing::AbortedByClient => {
                connection.gone().await;
                End::Aborted
            }
            Ok(()) if closes(response) => End::Closed,
            Ok(()) => End::Kept,
        }
    }

    async fn send(
        &self,
        connection: &mut Connection,
        record: &Record,
        start: Instant,
        mut head: Vec<u8>,
    ) -> io::Result<()> {
        let response = &record.response;
        if let Some(body) = &response.body {
            head.extend(body.bytes());
            self.until(connection, start, record.total_ms).await?;
            return connection.write(&head).await;
        }
        self.until(connection, start, record.ttfb_ms).await?;
        connection.write(&head).await?;
        let chunked = matches!(response.framing, Framing::Chunked | Framing::AbortedByClient);
        for chunk in &response.chunks {
            self.until(connection, start, chunk.t_ms).await?;
            let data = if chunked {
                format!("{:x}\r\n{}\r\n", chunk.data.len(), chunk.data)
            } else {
                chunk.data.clone()
            };
            connection.write(data.as_bytes()).await?;
        }
        if response.framing == Framing::AbortedByClient {
            return Ok(());
        }
        self.until(connection, start, record.total_ms).await?;
        if chunked {
            connection.write(b"0\r\n\r\n").await?;
        }
        Ok(())
    }

    /// Waits until `at` milliseconds of captured time after `start`; an error when the client goes away meanwhile.
    async fn until(&self, connection: &mut Connection, start: Instant, at: f64) -> io::Result<()> {
        let scale = f64::from_bits(self.time_scale.load(Ordering::Relaxed));
        let wait = Duration::try_from_secs_f64(at * scale / 1000.0).unwrap_or_default();
        if wait.is_zero() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(start + wait) => Ok(()),
            () = connection.gone() => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn count(&self, request: &Request) {
        let mut state = self.state.lock();
        state.requests += 1;
        let key = (request.method.clone(), request.target.clone());
        if state.by_target.len() < MOST_TARGETS || state.by_target.contains_key(&key) {
            *state.by_target.entry(key).or_default() += 1;
        }
    }
}

/// Whether the connection ends with this response.
fn closes(response: &CapturedResponse) -> bool {
    response.framing == Framing::UntilClose
        || response.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
        })
}

/// The answer to what was never captured, in Dify's shape.
fn unmatched(request: &Request, library: &Library) -> Vec<u8> {
    let path = request.target.split('?').next().unwrap_or_default();
    let service_api = path == "/v1" || path.starts_with("/v1/");
    let (status, reason, body) = if request.method == "GET" && path == "/health" {
        (200, "OK", r#"{"pid": 1, "status": "ok", "version": "1.12.1"}"#)
    } else if service_api && !library.knows(request) {
        (
            401,
            "UNAUTHORIZED",
            r#"{"code": "unauthorized", "message": "Access token is invalid", "status": 401}"#,
        )
    } else {
        (
            404,
            "NOT FOUND",
            r#"{"code": "not_found", "message": "The requested URL was not found on the server.", "status": 404}"#,
        )
    };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nServer: gunicorn\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len() + 1
    );
    let body = if request.method == "HEAD" {
        String::new()
    } else {
        format!("{body}\n")
    };
    format!("{head}{body}").into_bytes()
}

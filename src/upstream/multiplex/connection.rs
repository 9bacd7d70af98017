//! One HTTP/2 connection to a replica, which many exchanges share.
//!
//! It counts as open when the peer's settings have come: they say how many streams it allows, and a peer that does not
//! speak HTTP/2 is found out before any request is lost to it. A peer that is gone without a word is noticed by pings
//! while exchanges wait for it, by the kernel's probes (`connector`), and by an exchange that times out while nothing
//! at all came ([`Multiplexed::retire`]).

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::protocol::STREAMS;
use crate::upstream::connection::Transport;
use crate::upstream::request_body::RequestBody;

/// What may lie here of one answer that its client does not read.
const STREAM_WINDOW: u32 = 256 << 10;
/// As much for every stream at once: one client that does not read must not hold up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// An answer's fields, or its trailers, are no longer than this.
const FIELDS: u32 = 64 << 10;
/// While exchanges are open and nothing has come for so long, the peer is asked whether it is there. gRPC servers take
/// more than three such questions within five minutes of silence amiss.
const PING_AFTER: Duration = Duration::from_secs(75);
/// The longest wait for the answer to that.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that were ended here and are remembered, so that what was under way on them is no error.
const RESETS: usize = 1024;
/// Taken for the peer's limit of streams before its settings have come; no peer can say it.
const UNKNOWN: usize = usize::MAX - 1;

type Driven = http2::Connection<TokioIo<Socket>, RequestBody, TokioExecutor>;

/// An open connection. Dropped, it takes no more exchanges and ends with the last of those that it has.
pub(in crate::upstream) struct Multiplexed {
    sender: SendRequest<RequestBody>,
    /// The address that it leads to.
    pub(super) peer: SocketAddr,
    traffic: Arc<Traffic>,
    driven: Arc<Mutex<Option<Driven>>>,
    /// What the peer said last of how many streams it allows.
    limit: AtomicUsize,
    closed: CancellationToken,
    retired: AtomicBool,
}

/// A mark on a request that nobody has taken yet.
#[derive(Clone)]
struct Untaken(#[expect(dead_code, reason = "only counted")] Arc<()>);

/// Whether a request that was given to a connection has been taken by it.
pub(super) struct Given(Arc<()>);

impl Given {
    /// Whether it still waits to be taken.
    pub(super) fn is_waiting(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Multiplexed {
    /// Starts HTTP/2 on an open transport.
    pub(in crate::upstream) async fn start(
        transport: Box<dyn Transport>,
        peer: SocketAddr,
    ) -> io::Result<Self> {
        let traffic = Arc::new(Traffic::default());
        let socket = Socket {
            io: transport,
            traffic: traffic.clone(),
        };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_max_send_streams(UNKNOWN)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(FIELDS)
            .max_concurrent_reset_streams(RESETS)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(io::Error::other)?;
        let driven = Arc::new(Mutex::new(Some(connection)));
        let closed = CancellationToken::new();
        tokio::spawn({
            let (driven, closed) = (driven.clone(), closed.clone().drop_guard());
            async move {
                let ended = poll_fn(|cx| match &mut *driven.lock() {
                    Some(connection) => Pin::new(connection).poll(cx),
                    None => Poll::Ready(Ok(())),
                })
                .await;
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a shared connection to a replica ended");
                }
                // What was given to it and not taken comes back by this.
                drop(driven.lock().take());
                drop(closed);
            }
        });
        let this = Self {
            sender,
            peer,
            traffic,
            driven,
            limit: AtomicUsize::new(UNKNOWN),
            closed,
            retired: AtomicBool::new(false),
        };
        loop {
            if this.peers_limit() != UNKNOWN {
                return Ok(this);
            }
            tokio::select! {
                () = this.traffic.looked.notified() => {}
                () = this.closed.cancelled() => {
                    return Err(io::Error::new(io::ErrorKind::Unsupported, "the peer does not speak HTTP/2"));
                }
            }
        }
    }

    /// Streams that the peer allows at once.
    fn peers_limit(&self) -> usize {
        // Who drives it at this moment has it locked; then what was heard last will do.
        if let Some(driven) = self.driven.try_lock()
            && let Some(connection) = &*driven
        {
            self.limit
                .store(connection.current_max_send_streams(), Ordering::Relaxed);
        }
        self.limit.load(Ordering::Relaxed)
    }

    /// Streams that it can have at once.
    pub(super) fn room(&self) -> usize {
        self.peers_limit().clamp(1, STREAMS)
    }

    /// Begins an exchange. Dropping the future ends it, and no other.
    pub(super) fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> (
        impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>,
        Given,
    ) {
        let given = Arc::new(());
        // Whoever makes a stream of the request drops this.
        request.extensions_mut().insert(Untaken(given.clone()));
        (self.sender.clone().try_send_request(request), Given(given))
    }

    /// Bytes handed to the socket so far.
    pub(super) fn written(&self) -> u64 {
        self.traffic.written.load(Ordering::Acquire)
    }

    /// Bytes that came so far.
    pub(super) fn received(&self) -> u64 {
        self.traffic.received.load(Ordering::Acquire)
    }

    /// Waits until it takes nothing more.
    pub(super) async fn ended(&self) {
        self.closed.cancelled().await;
    }

    /// Gives it no further exchanges.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether it takes exchanges.
    pub(super) fn is_open(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && !self.sender.is_closed() && !self.closed.is_cancelled()
    }
}

/// What passed a socket.
#[derive(Default)]
struct Traffic {
    written: AtomicU64,
    received: AtomicU64,
    /// Told whenever somebody looks whether more has come: what came before is taken in then.
    looked: Notify,
}

/// The socket below hyper: counts.
struct Socket {
    io: Box<dyn Transport>,
    traffic: Arc<Traffic>,
}

impl Socket {
    fn count(&self, written: usize) -> usize {
        self.traffic.written.fetch_add(written as u64, Ordering::AcqRel);
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let came = buf.filled().len() - before;
        self.traffic.received.fetch_add(came as u64, Ordering::AcqRel);
        self.traffic.looked.notify_one();
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        written.map_ok(|written| self.count(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        written.map_ok(|written| self.count(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

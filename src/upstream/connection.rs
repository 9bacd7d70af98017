//! One HTTP/1.1 connection to a replica: hyper's sender, the task that drives it, and the socket below.
//!
//! `pool` keeps connections that are at rest, `response_body` those in use.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::request_body::RequestBody;

/// What a connection runs over: TCP, or TLS over TCP.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open connection. Dropping it closes the socket at once, whatever is in flight: that is how a client's
/// leaving ends the upstream's work.
pub(super) struct Connection {
    pub(super) sender: SendRequest<RequestBody>,
    /// The address that it leads to.
    pub(super) peer: SocketAddr,
    written: Arc<AtomicU64>,
    driver: Driver,
}

struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Starts HTTP/1.1 on an open transport.
    pub(super) async fn start(transport: Box<dyn Transport>, peer: SocketAddr) -> hyper::Result<Self> {
        let written = Arc::new(AtomicU64::new(0));
        let socket = Socket {
            io: TokioIo::new(transport),
            written: written.clone(),
            broken: false,
        };
        let (sender, connection) = http1::handshake(socket).await?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%peer, %error, "connection to a replica ended");
            }
        }));
        Ok(Self {
            sender,
            peer,
            written,
            driver,
        })
    }

    /// Bytes handed to the socket so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Waits until the task that drives it has ended.
    pub(super) async fn ended(&mut self) {
        if !self.driver.0.is_finished() {
            // How it ended makes no difference.
            let _ = (&mut self.driver.0).await;
        }
    }

    /// Whether the driver is waiting for the next request.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && !self.is_closed()
    }

    /// Whether it can never be used again.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.driver.0.is_finished()
    }
}

/// The socket as hyper sees it: counts what is written, and keeps write errors back.
///
/// An origin may answer 413 and close before it has read the whole request. Our next write then fails, and
/// hyper would report that instead of the answer, which is waiting to be read. So a broken write side only
/// stalls; the read side tells how the exchange ends: with the answer, or with the end of the connection.
struct Socket {
    io: TokioIo<Box<dyn Transport>>,
    written: Arc<AtomicU64>,
    broken: bool,
}

impl Socket {
    /// Does `write` unless the write side is broken, and keeps its error back.
    fn write_side<T>(
        &mut self,
        write: impl FnOnce(Pin<&mut TokioIo<Box<dyn Transport>>>) -> Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        if !self.broken {
            match write(Pin::new(&mut self.io)) {
                Poll::Ready(Err(_)) => self.broken = true,
                done => return done,
            }
        }
        Poll::Pending
    }

    fn count(&self, written: usize) -> usize {
        self.written.fetch_add(written as u64, Ordering::AcqRel);
        written
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = self.write_side(|io| io.poll_write(cx, buf));
        written.map_ok(|written| self.count(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = self.write_side(|io| io.poll_write_vectored(cx, bufs));
        written.map_ok(|written| self.count(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.write_side(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

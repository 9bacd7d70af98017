//! An origin whose every move a test writes down.
//!
//! It reads and writes raw bytes, so that it can do what no HTTP library would.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Origin {
    /// Runs `serve` for each connection; its number, from 0, comes with it.
    pub(crate) async fn start<F, R>(serve: F) -> Self
    where
        F: Fn(Conn, usize) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(Conn::new(stream), number));
            }
        });
        Self {
            address,
            accepted,
            accepting,
        }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// One connection, seen from the origin.
pub(crate) struct Conn<S = TcpStream> {
    pub(crate) stream: S,
    pub(crate) buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    async fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk).await {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
            _ => false,
        }
    }

    /// The next request's head with its final empty line; `None` when the connection ends first.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next `length` bytes.
    pub(crate) async fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// Head and content of the next request that has a Content-Length, or none.
    pub(crate) async fn request(&mut self) -> Option<(String, String)> {
        let head = self.head().await?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let content = self.bytes(length).await?;
        Some((head, String::from_utf8(content).unwrap()))
    }

    /// Reads a chunked body to its end and forgets it.
    pub(crate) async fn until_last_chunk(&mut self) {
        while !self.buffer.ends_with(b"\r\n0\r\n\r\n") {
            let old = self.buffer.len().saturating_sub(7);
            self.buffer.drain(..old);
            assert!(self.more().await, "the body was cut off");
        }
        self.buffer.clear();
    }

    pub(crate) async fn say(&mut self, text: &str) {
        // The other side may be gone already; a test that cares looks at what it received.
        let _ = self.stream.write_all(text.as_bytes()).await;
        let _ = self.stream.flush().await;
    }

    /// Answers with `text` and keeps the connection.
    pub(crate) async fn answer(&mut self, text: &str) {
        self.say(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        ))
        .await;
    }

    /// Waits until the other side has closed.
    pub(crate) async fn until_closed(&mut self) {
        while self.more().await {}
    }
}

impl Conn<TcpStream> {
    /// Closes with a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

//! A replica that counts what is delivered to it, and fails as told.
//!
//! A delivery is a request of which the server has seen a byte, whether it can make anything of it or not. Probes of the
//! health check are none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it answers.
    None,
    /// Resets each connection without reading from it.
    ResetsUnread,
    /// Resets after the first bytes of the head.
    ResetsInHead,
    /// Resets after the whole request.
    ResetsAfterRequest,
    /// Answers with a part of a head, and closes.
    HalfHead,
    /// Answers with a head and a part of the content, and resets.
    CutBody,
    /// Reads and never answers. Probes are answered.
    BlackHole,
    /// The same, and probes are not answered either.
    Frozen,
    /// Answers with this status.
    Says(u16),
    /// Answers the first request on a connection, and closes when another comes on it.
    ClosesKept,
}

struct Shared {
    fault: Mutex<Fault>,
    delivered: Mutex<Vec<String>>,
    left: Mutex<usize>,
}

/// A running server; ends when dropped.
pub struct Faulty {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Faulty {
    /// Starts one with `fault`.
    pub async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            fault: Mutex::new(fault),
            delivered: Mutex::default(),
            left: Mutex::default(),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, serving.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            shared,
            task,
        }
    }

    /// Fails so from now on.
    pub fn turn(&self, fault: Fault) {
        *self.shared.fault.lock() = fault;
    }

    /// What came first of each request that was delivered.
    pub fn delivered(&self) -> Vec<String> {
        self.shared.delivered.lock().clone()
    }

    /// How many left before they were answered.
    pub fn left(&self) -> usize {
        *self.shared.left.lock()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let reset = |stream: &TcpStream| {
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    if *shared.fault.lock() == Fault::ResetsUnread {
        return reset(&stream);
    }
    for turn in 0.. {
        let mut request = Vec::new();
        let mut place = None;
        while !is_whole(&request) {
            match stream.read_buf(&mut request).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            if text.starts_with("GET /health ") {
                continue;
            }
            let mut delivered = shared.delivered.lock();
            match place {
                None => {
                    place = Some(delivered.len());
                    delivered.push(text);
                }
                Some(place) => delivered[place] = text,
            }
            if *shared.fault.lock() == Fault::ResetsInHead {
                return reset(&stream);
            }
        }
        let fault = *shared.fault.lock();
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned();
        let (answer, ends) = match fault {
            _ if place.is_none() && fault != Fault::Frozen => (ok, false),
            Fault::None => (ok, false),
            Fault::ClosesKept if turn == 0 => (ok, false),
            Fault::ClosesKept => return,
            Fault::Says(status) => (
                format!("HTTP/1.1 {status} Faulty\r\nContent-Length: 3\r\n\r\nbad"),
                false,
            ),
            Fault::HalfHead => ("HTTP/1.1 200 OK\r\nContent-Le".to_owned(), true),
            Fault::CutBody => (
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok".to_owned(),
                true,
            ),
            Fault::ResetsUnread | Fault::ResetsInHead | Fault::ResetsAfterRequest => return reset(&stream),
            Fault::BlackHole | Fault::Frozen => {
                // Until the peer leaves.
                let _ = stream.read(&mut [0]).await;
                *shared.left.lock() += 1;
                return;
            }
        };
        // An answer to HEAD has no content.
        let shown = match answer.find("\r\n\r\n") {
            Some(end) if request.starts_with(b"HEAD ") => &answer[..end + 4],
            _ => &answer[..],
        };
        if stream.write_all(shown.as_bytes()).await.is_err() || ends {
            return;
        }
    }
}

/// Whether a request with a `Content-Length`, or none, is there with its last byte.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, content)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    content.len() >= length.unwrap_or(0)
}

/// An address at which a connection is neither made nor refused, for as long as what comes with it is held.
pub async fn never_connects() -> (SocketAddr, impl Sized) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("a free port");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("its address");
    // Nobody takes these, and the kernel keeps no more of them than its queue holds.
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        waiting.push(stream.expect("a connection"));
    }
    (address, (listener, waiting))
}

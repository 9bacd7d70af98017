//! Accepts connections, as many as the limits allow in all and from one peer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use http::{Request, Response};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::{self, Shared, Spoken};
use super::metrics::{GaugeGuard, Refused};
use super::respond;
use super::screen::Transport;
use super::tls::Certificate;
use crate::types::request::Client;
use crate::types::{Body, Failure, FailureKind};

const BACKLOG: i32 = 4096;
/// After this much silence the kernel finds out whether a peer still exists.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Connections that are told at one time that there are too many; more are just closed.
const REFUSALS: usize = 64;
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Pause after the system had no file descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Transport for TcpStream {
    fn abort(&self) {
        // Closing with nothing to linger for sends a reset.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Transport for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

/// Opens a listening socket.
pub(super) fn open(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The place of one connection among all; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) gauge: Option<GaugeGuard>,
    _peer: PeerSlot,
    _permit: OwnedSemaphorePermit,
    _token: TaskTrackerToken,
}

/// How many connections each peer holds; as bounded as they are.
type Peers = Mutex<AHashMap<IpAddr, usize>>;

#[derive(Debug)]
struct PeerSlot {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl PeerSlot {
    fn take(peers: &Arc<Peers>, peer: IpAddr, limit: usize) -> Option<Self> {
        let mut held = peers.lock();
        let count = held.entry(peer).or_insert(0);
        if *count >= limit {
            if limit == 0 {
                held.remove(&peer);
            }
            return None;
        }
        *count += 1;
        Some(Self {
            peers: peers.clone(),
            peer,
        })
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut held = self.peers.lock();
        if let Some(count) = held.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

/// The caps on connections, over all listeners.
#[derive(Debug, Clone)]
pub(super) struct Caps {
    total: Arc<Semaphore>,
    peers: Arc<Peers>,
    per_peer: usize,
    refusals: Arc<Semaphore>,
}

impl Caps {
    pub(super) fn new(total: usize, per_peer: usize) -> Self {
        Self {
            total: Arc::new(Semaphore::new(total.min(Semaphore::MAX_PERMITS))),
            peers: Arc::default(),
            per_peer,
            refusals: Arc::new(Semaphore::new(REFUSALS)),
        }
    }
}

/// One listener at work.
pub(super) struct Acceptor<S> {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<Certificate>>,
    pub(super) trusted: Arc<[ipnet::IpNet]>,
    pub(super) caps: Caps,
    pub(super) shared: Arc<Shared>,
    pub(super) tracker: TaskTracker,
    pub(super) stack: S,
}

impl<S> Acceptor<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Accepts until the drain begins.
    pub(super) async fn run(self) {
        let drain = self.shared.drain.clone();
        // Biased toward the end: `None` as soon as it is there.
        while let Some(accepted) = drain
            .run_until_cancelled(accept(&self.caps, &self.listener))
            .await
        {
            match accepted {
                Ok((stream, peer, permit)) => self.start(stream, peer, permit),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    drain.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
    }

    fn start(&self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let client = Client {
            peer,
            tls: self.tls.is_some(),
            trusted: self
                .trusted
                .iter()
                .any(|network| network.contains(&peer.ip().to_canonical())),
        };
        // Behind the address of a trusted proxy are many clients.
        let most = if client.trusted {
            usize::MAX
        } else {
            self.caps.per_peer
        };
        let Some(place) = PeerSlot::take(&self.caps.peers, client.ip(), most) else {
            return self.turn_away(stream);
        };
        let slot = Slot {
            gauge: None,
            _peer: place,
            _permit: permit,
            _token: self.tracker.token(),
        };
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
        let (tls, stack, shared) = (self.tls.clone(), self.stack.clone(), self.shared.clone());
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            let work = async {
                match tls {
                    None => {
                        connection::drive(stream, Spoken::Unknown, client, Some(slot), stack, &shared).await;
                    }
                    // Boxed, so that plain connections do not hold the room.
                    Some(certificate) => {
                        let shaken = Box::pin(shake_hands(stream, &certificate, &shared)).await;
                        if let Some((stream, spoken)) = shaken {
                            let driving =
                                connection::drive(stream, spoken, client, Some(slot), stack, &shared);
                            Box::pin(driving).await;
                        }
                    }
                }
            };
            stop.run_until_cancelled(Box::pin(work)).await;
        });
    }

    /// Tells a peer without waiting for its request that it has too many connections.
    fn turn_away(&self, mut stream: TcpStream) {
        self.shared.ledger.metrics.count_refused(Refused::PerPeer);
        if self.tls.is_some() {
            // The answer would cost a handshake.
            return;
        }
        let Ok(permit) = self.caps.refusals.clone().try_acquire_owned() else {
            return;
        };
        let failure = Failure::new(
            FailureKind::TooManyConnections,
            format!("more than {} connections from one address", self.caps.per_peer),
        );
        tokio::spawn(async move {
            let _permit = permit;
            let _ = timeout(REFUSAL_TIME, async {
                stream.write_all(&respond::failure_bytes(&failure)).await?;
                stream.shutdown().await?;
                // What the peer sends meanwhile must be read, or closing would take the answer from it.
                let mut unread = [0; 1024];
                while stream.read(&mut unread).await? > 0 {}
                std::io::Result::Ok(())
            })
            .await;
        });
    }
}

/// The next connection, once there is room for it.
async fn accept(
    caps: &Caps,
    listener: &TcpListener,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = caps.total.clone().acquire_owned().await;
    let permit = permit.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

async fn shake_hands(
    stream: TcpStream,
    certificate: &Certificate,
    shared: &Shared,
) -> Option<(TlsStream<TcpStream>, Spoken)> {
    let acceptor = TlsAcceptor::from(certificate.current());
    let shaken = timeout(shared.limits.header_read.0, acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = shaken else {
        shared.ledger.metrics.count_refused(Refused::Handshake);
        return None;
    };
    let spoken = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Spoken::Http2,
        _ => Spoken::Http1,
    };
    Some((stream, spoken))
}

//! Opens connections: each address of a replica in turn, TLS where its URL says `https`.
//!
//! Names are already resolved when a connection is asked for; which addresses a replica has is the business of
//! routing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connection::{Connection, Transport};
use super::multiplex::Multiplexed;
use crate::types::endpoint::Endpoint;
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};

/// What ALPN calls the two (RFC 7301 section 6).
const HTTP_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";
/// The kernel asks a peer that has been silent for so long whether it is there,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// and asks again after this.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Makes connections to replicas.
pub(super) struct Connector {
    clock: Clock,
    /// `None` when no replica speaks TLS.
    tls: Option<Tls>,
}

/// TLS, by what is to be spoken over it.
struct Tls {
    http1: TlsConnector,
    h2: TlsConnector,
}

/// What is to be spoken over a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
}

impl Connector {
    /// A connector that trusts `roots` for TLS.
    pub(super) fn new(clock: Clock, roots: Option<rustls::RootCertStore>) -> Result<Self, String> {
        let tls = roots.map(|roots| {
            Ok::<_, String>(Tls {
                http1: client_config(roots.clone(), HTTP_1)?,
                h2: client_config(roots, HTTP_2)?,
            })
        });
        let tls = tls.transpose()?;
        Ok(Self { clock, tls })
    }

    /// Opens a connection for one exchange at a time before `limit`.
    pub(super) async fn connect(&self, endpoint: &Endpoint, limit: Instant) -> Result<Connection, Failure> {
        let open = |address| async move {
            let transport = self.open(endpoint, address, Spoken::Http1).await?;
            Connection::start(transport, address)
                .await
                .map_err(io::Error::other)
        };
        self.first_of(endpoint, limit, open).await
    }

    /// Opens a connection for many exchanges before `limit`.
    pub(super) async fn connect_shared(
        &self,
        endpoint: &Endpoint,
        limit: Instant,
    ) -> Result<Multiplexed, Failure> {
        let open = |address| async move {
            let transport = self.open(endpoint, address, Spoken::Http2).await?;
            Multiplexed::start(transport, address).await
        };
        self.first_of(endpoint, limit, open).await
    }

    /// What `open` gives for the first address that it succeeds with. The addresses share the time evenly, so that one
    /// that does not answer leaves time for the next.
    async fn first_of<T, F>(
        &self,
        endpoint: &Endpoint,
        limit: Instant,
        open: impl Fn(SocketAddr) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = io::Result<T>>,
    {
        let addresses = endpoint.addresses();
        let mut failure = Failure::new(
            FailureKind::ConnectFailed,
            "the name of the upstream is not known",
        );
        for (index, address) in addresses.iter().enumerate() {
            let now = self.clock.now().monotonic;
            let left = limit.saturating_duration_since(now) / (addresses.len() - index) as u32;
            failure = match timeout_at(now + left, open(*address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => {
                    tracing::debug!(replica = endpoint.authority(), %address, %error, "cannot connect");
                    let detail = match error.kind() {
                        io::ErrorKind::ConnectionRefused => "the upstream refuses connections",
                        io::ErrorKind::Unsupported => "the upstream does not speak HTTP/2",
                        io::ErrorKind::InvalidData => "TLS with the upstream failed",
                        _ => "the upstream cannot be reached",
                    };
                    Failure::new(FailureKind::ConnectFailed, detail)
                }
                Err(_) => Failure::new(
                    FailureKind::ConnectTimeout,
                    "the connection to the upstream took too long",
                ),
            };
        }
        Err(failure)
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
        spoken: Spoken,
    ) -> io::Result<Box<dyn Transport>> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        if spoken == Spoken::Http2 {
            // Others than HTTP/1.1 connections these are open for hours, and many wait for one.
            let keepalive = TcpKeepalive::new()
                .with_time(KEEPALIVE_AFTER)
                .with_interval(KEEPALIVE_INTERVAL);
            SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        }
        if !endpoint.tls {
            return Ok(Box::new(tcp));
        }
        let tls = self
            .tls
            .as_ref()
            .ok_or_else(|| io::Error::other("no certificates are loaded"))?;
        let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
        match spoken {
            Spoken::Http1 => Ok(Box::new(tls.http1.connect(name, tcp).await?)),
            Spoken::Http2 => {
                let stream = tls.h2.connect(name, tcp).await?;
                if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "the peer did not agree on HTTP/2",
                    ));
                }
                Ok(Box::new(stream))
            }
        }
    }
}

/// The certificates that the machine trusts.
pub(super) fn native_roots() -> Result<rustls::RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some trusted certificates cannot be read");
    }
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err("an upstream uses https, but this machine has no trusted certificates".into());
    }
    Ok(roots)
}

fn client_config(roots: rustls::RootCertStore, protocol: &[u8]) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

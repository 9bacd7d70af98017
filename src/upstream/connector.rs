//! Opens connections: each address of a replica in turn, TLS where its URL says `https`.
//!
//! Names are already resolved when a connection is asked for; which addresses a replica has is the business of
//! routing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connection::{Connection, Transport};
use crate::types::endpoint::Endpoint;
use crate::types::time::Clock;
use crate::types::{Failure, FailureKind};

/// Makes connections to replicas.
pub(super) struct Connector {
    clock: Clock,
    /// `None` when no replica speaks TLS.
    tls: Option<TlsConnector>,
}

impl Connector {
    /// A connector that trusts `roots` for TLS.
    pub(super) fn new(clock: Clock, roots: Option<rustls::RootCertStore>) -> Result<Self, String> {
        let tls = roots.map(client_config).transpose()?;
        Ok(Self { clock, tls })
    }

    /// Opens a connection before `limit`. The addresses share the time evenly, so that one that does not
    /// answer leaves time for the next.
    pub(super) async fn connect(&self, endpoint: &Endpoint, limit: Instant) -> Result<Connection, Failure> {
        let addresses = endpoint.addresses();
        let mut failure = Failure::new(
            FailureKind::ConnectFailed,
            "the name of the upstream is not known",
        );
        for (index, address) in addresses.iter().enumerate() {
            let now = self.clock.now().monotonic;
            let left = limit.saturating_duration_since(now) / (addresses.len() - index) as u32;
            failure = match timeout_at(now + left, self.open(endpoint, *address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => {
                    tracing::debug!(replica = endpoint.authority(), %address, %error, "cannot connect");
                    let detail = match error.kind() {
                        io::ErrorKind::ConnectionRefused => "the upstream refuses connections",
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

    async fn open(&self, endpoint: &Endpoint, address: SocketAddr) -> io::Result<Connection> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let transport: Box<dyn Transport> = match (&self.tls, endpoint.tls) {
            (_, false) => Box::new(tcp),
            (Some(tls), true) => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
                Box::new(tls.connect(name, tcp).await?)
            }
            (None, true) => return Err(io::Error::other("no certificates are loaded")),
        };
        Connection::start(transport, address)
            .await
            .map_err(io::Error::other)
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

fn client_config(roots: rustls::RootCertStore) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

//! `listen`, `admin` and `limits`: what stands between clients and the first stage.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::units::{Size, Span};

/// One address that clients connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// IP address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS with ALPN `h2` and `http/1.1`; without it HTTP/1.1 and h2c by prior knowledge.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
        }
    }
}

/// Certificate chain and private key, both PEM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Path of the certificate chain.
    pub cert: PathBuf,
    /// Path of the private key.
    pub key: PathBuf,
}

/// The administrative listener. Whoever can connect to it may read; writes need a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// IP address and port. Default `127.0.0.1:9901`.
    pub address: SocketAddr,
    /// What writes (`POST /cache/purge`) must carry as `Authorization: Bearer TOKEN`. Default: none, and then
    /// writes are refused.
    pub token: Option<Token>,
    /// A file that holds the token, in place of `token`; read at start, white space around it is dropped.
    pub token_file: Option<PathBuf>,
}

/// The administrative token. `Debug` does not show it; serialized it is whole (`Config::redacted` hides it).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl Token {
    /// Shorter ones can be guessed.
    pub const LEAST: usize = 16;
    /// Longer ones do not fit beside the other fields of a request.
    pub const MOST: usize = 1024;

    /// Why it cannot be used, if so. Refusing short ones also keeps the `***` that `check --print` shows in its
    /// place from becoming a token.
    pub fn problem(&self) -> Option<String> {
        if !(Self::LEAST..=Self::MOST).contains(&self.0.len()) {
            return Some(format!(
                "a token has from {} to {} characters, and this one has {}",
                Self::LEAST,
                Self::MOST,
                self.0.chars().count()
            ));
        }
        let fits = self.0.bytes().all(|byte| byte.is_ascii_graphic());
        (!fits).then(|| "a token has ASCII letters, digits and signs only, no spaces".into())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 9901)),
            token: None,
            token_file: None,
        }
    }
}

/// Limits on connections and requests. What is beyond one is answered with a 4xx that names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections in all; further ones wait to be accepted. Default 10000.
    pub connections: usize,
    /// Connections from one IP address that is not a trusted proxy's; a further one gets 429. Default 2000.
    pub connections_per_peer: usize,
    /// Header fields of a request (431). Default 100.
    pub header_count: usize,
    /// Bytes of a request's header section (431). Default 32KiB.
    pub header_bytes: Size,
    /// Bytes of the request target (414). Default 8KiB.
    pub uri_bytes: Size,
    /// From a request's first byte to the end of its head (408). Default 10s.
    pub header_read: Span,
    /// How long a connection may be idle between requests, and how long a client may take nothing of an answer.
    /// Default 75s.
    pub idle: Span,
    /// A request body slower than this for `body_grace` is given up (408); bytes per second. Default 512.
    pub body_rate: Size,
    /// How long a request body may be below `body_rate`. Default 10s.
    pub body_grace: Span,
    /// Request body by route class (413).
    pub body: BodyLimits,
    /// Streams that an HTTP/2 connection may have open at once. Default 128.
    pub h2_streams: u32,
    /// HTTP/2 streams that a peer may reset before they are served, and that await being cleaned up, until the
    /// connection is closed (rapid reset). Default 64.
    pub h2_resets: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_peer: 2_000,
            header_count: 100,
            header_bytes: Size::kib(32),
            uri_bytes: Size::kib(8),
            header_read: Span::secs(10),
            idle: Span::secs(75),
            body_rate: Size(512),
            body_grace: Span::secs(10),
            body: BodyLimits::default(),
            h2_streams: 128,
            h2_resets: 64,
        }
    }
}

/// The longest request body of each route class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BodyLimits {
    /// Uploads of files. Default 2GiB.
    pub upload: Size,
    /// Generations (inputs may carry whole documents). Default 16MiB.
    pub generation: Size,
    /// Unknown routes and other upstreams. Default 100MiB.
    pub passthrough: Size,
    /// Everything else. Default 4MiB.
    pub other: Size,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            upload: Size::mib(2048),
            generation: Size::mib(16),
            passthrough: Size::mib(100),
            other: Size::mib(4),
        }
    }
}

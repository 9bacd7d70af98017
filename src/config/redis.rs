//! Which servers `cache.redis` names, as the client library wants to be told: one, a cluster, or what sentinels say is
//! the master, with TLS if wanted.
//!
//! Here because two stages connect to them, the cache and the guard, and neither knows the other. Nothing is connected
//! to before the client is told to.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use fred::clients::Client;
use fred::types::Builder;
use fred::types::config::{Config, ServerConfig, TlsConnector};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::cache::RedisConfig;

/// The longest that one step of connecting may take.
const STEP: Duration = Duration::from_secs(1);
/// Commands that wait for the connection, and messages that wait to be heard.
const COMMANDS: usize = 8192;
const MESSAGES: usize = 8192;

/// The servers. `Debug` shows their addresses alone.
#[derive(Clone)]
pub struct RedisServers(Config);

impl fmt::Debug for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisServers").field(&self.names()).finish()
    }
}

impl RedisConfig {
    /// The servers that are named.
    ///
    /// # Errors
    /// When the URL or the authorities' file cannot be used: a sentence that names the key, without the URL.
    pub fn servers(&self) -> Result<RedisServers, String> {
        let url = self
            .url
            .as_deref()
            .ok_or("cache.redis.url is needed with `type: redis`")?;
        // The plain spelling: fred would load the system's authorities for the other, whether they are wanted or not.
        let (plain, tls) = match url.split_once("://") {
            Some((scheme, rest)) => match scheme.strip_prefix("rediss").or(scheme.strip_prefix("valkeys")) {
                Some(kind) => (format!("redis{kind}://{rest}"), true),
                None => (url.to_owned(), false),
            },
            None => (url.to_owned(), false),
        };
        let mut config = Config::from_url(&plain).map_err(|error| format!("cache.redis.url: {error}"))?;
        if tls {
            let connector = match &self.ca {
                Some(path) => trusting(path)?,
                None => {
                    TlsConnector::default_rustls().map_err(|error| format!("cache.redis.url: {error}"))?
                }
            };
            config.tls = Some(connector.into());
        }
        Ok(RedisServers(config))
    }
}

impl RedisServers {
    /// A client that has not connected yet, and that never connects again by itself when its connection is lost.
    /// `attempt`: with each the next host is the first that is asked, for fred waits for the first and tries no other.
    ///
    /// # Errors
    /// When the library does not take the settings.
    pub fn client(&self, attempt: usize) -> Result<Client, fred::error::Error> {
        let mut config = self.0.clone();
        if let ServerConfig::Clustered { hosts, .. } | ServerConfig::Sentinel { hosts, .. } =
            &mut config.server
        {
            let first = attempt % hosts.len().max(1);
            hosts.rotate_left(first);
        }
        let mut builder = Builder::from_config(config);
        builder.with_connection_config(|config| {
            config.connection_timeout = STEP;
            config.internal_command_timeout = STEP;
            config.max_command_attempts = 1;
            config.max_redirections = 3;
            config.max_command_buffer_len = COMMANDS;
            config.tcp.nodelay = Some(true);
        });
        builder.with_performance_config(|config| config.broadcast_channel_capacity = MESSAGES);
        builder.build()
    }

    /// Whether keys are spread over several servers.
    pub fn is_clustered(&self) -> bool {
        self.0.server.is_clustered()
    }

    /// Their addresses, with commas between.
    pub fn names(&self) -> String {
        let hosts: Vec<_> = self.0.server.hosts().iter().map(ToString::to_string).collect();
        hosts.join(",")
    }
}

/// TLS that trusts the authorities in this PEM file and no others.
fn trusting(path: &Path) -> Result<TlsConnector, String> {
    let say = |what: &dyn fmt::Display| format!("cache.redis.ca: {}: {what}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| say(&error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| say(&error))?;
        roots.add(certificate).map_err(|error| say(&error))?;
    }
    if roots.is_empty() {
        return Err(say(&"no certificate in it"));
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config.into())
}

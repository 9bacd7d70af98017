//! TLS in front of a listener: the certificate as it is on disk now, offered with ALPN `h2` and `http/1.1`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use super::BindError;
use crate::config::TlsConfig;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// When certificate and key were last written.
type Written = [Option<SystemTime>; 2];

/// A certificate that follows its files.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsConfig,
    current: ArcSwap<ServerConfig>,
    written: Mutex<Written>,
}

impl Certificate {
    /// Reads the files.
    pub(super) fn load(files: &TlsConfig) -> Result<Self, BindError> {
        let written = written(files);
        Ok(Self {
            current: ArcSwap::new(Arc::new(server_config(files)?)),
            files: files.clone(),
            written: Mutex::new(written),
        })
    }

    /// What a handshake that begins now uses.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again if they were written since. Whatever is wrong with them, the last good
    /// certificate stays in use.
    pub(super) fn look(&self) {
        let now = written(&self.files);
        let mut known = self.written.lock();
        if *known == now {
            return;
        }
        match server_config(&self.files) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                tracing::info!(certificate = %self.files.cert.display(), "certificate reloaded");
            }
            Err(error) => tracing::warn!(%error, "certificate not reloaded, the last one stays"),
        }
        *known = now;
    }

    /// Follows the files until `end`.
    pub(super) async fn follow(self: Arc<Self>, end: CancellationToken) {
        while end
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            let certificate = self.clone();
            let _ = tokio::task::spawn_blocking(move || certificate.look()).await;
        }
    }
}

fn written(files: &TlsConfig) -> Written {
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok())
}

fn server_config(files: &TlsConfig) -> Result<ServerConfig, BindError> {
    let wrong = |path: &Path, why: String| BindError::Tls(format!("{}: {why}", path.display()));
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.cert, format!("cannot read a certificate: {error}")))?;
    if chain.is_empty() {
        return Err(wrong(&files.cert, "there is no certificate in it".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| wrong(&files.key, format!("cannot read a private key: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            wrong(
                &files.cert,
                format!("cannot be used with {}: {error}", files.key.display()),
            )
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

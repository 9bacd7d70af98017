//! How a connection to the database is encrypted and whom it trusts: `sslmode` and `sslrootcert` of the URL, with
//! the meaning that libpq gives them.
//!
//! `prefer` (the default) and `require` check no certificate, as everywhere with PostgreSQL: most servers have one
//! that they made themselves. `verify-full` checks it against the system's authorities or those in `sslrootcert`.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Reads the URL and makes the encryption that it asks for. Errors never show the URL, which has a password in it.
pub(super) fn configure(url: &str) -> Result<(Config, MakeRustlsConnect), String> {
    const FORM: &str = "not a URL like postgres://user:password@host:5432/database?sslmode=verify-full";
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(FORM.to_owned());
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut verify, mut authorities) = (false, None);
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", "verify-full")) => verify = true,
            Some(("sslmode", "disable" | "prefer" | "require")) => rest.push(pair),
            Some(("sslmode", _)) => {
                return Err("sslmode is one of disable, prefer, require, verify-full".into());
            }
            Some(("sslrootcert", path)) => authorities = Some(path),
            _ => rest.push(pair),
        }
    }
    let mut config: Config = format!("{base}?{}", rest.join("&"))
        .parse()
        .map_err(|_| FORM.to_owned())?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(format!("names no host; {FORM}"));
    }
    if authorities.is_some() && !verify {
        return Err("sslrootcert is looked at only with sslmode=verify-full".to_owned());
    }
    if verify {
        config.ssl_mode(SslMode::Require);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let tls = if verify {
        builder
            .with_root_certificates(roots(authorities)?)
            .with_no_client_auth()
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth()
    };
    Ok((config, MakeRustlsConnect::new(tls)))
}

/// Reads any text as a URL, by itself and behind a password, which no error shows.
#[cfg(any(test, fuzzing))]
pub(in crate::guard) fn read_anything(bytes: &[u8]) {
    const PASSWORD: &str = "hush-hush";
    // Not any file: some have no end.
    let Some(text) = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains("sslrootcert"))
    else {
        return;
    };
    for url in [text.to_owned(), format!("postgres://user:{PASSWORD}@{text}")] {
        match configure(&url) {
            Ok((config, _)) => assert!(config.get_hosts().len() + config.get_hostaddrs().len() > 0),
            Err(error) => {
                assert!(!error.is_empty() && (!error.contains(PASSWORD) || text.contains(PASSWORD)))
            }
        }
    }
}

fn roots(authorities: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = authorities else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("sslmode is verify-full, but this machine has no trusted certificates".to_owned());
        }
        return Ok(roots);
    };
    let say = |what: &dyn std::fmt::Display| format!("sslrootcert: {path}: {what}");
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| say(&error))? {
        let certificate = certificate.map_err(|error| say(&error))?;
        roots.add(certificate).map_err(|error| say(&error))?;
    }
    if roots.is_empty() {
        return Err(say(&"no certificate in it"));
    }
    Ok(roots)
}

/// Takes every certificate; that its owner speaks is checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_url_says_whether_there_is_encryption() {
        for (query, mode) in [
            ("", SslMode::Prefer),
            ("?sslmode=disable", SslMode::Disable),
            ("?sslmode=prefer", SslMode::Prefer),
            ("?connect_timeout=3&sslmode=require", SslMode::Require),
            ("?sslmode=verify-full&application_name=x", SslMode::Require),
        ] {
            let (config, _) = configure(&format!("postgres://u:p@db/dify{query}")).expect(query);
            assert_eq!(config.get_ssl_mode(), mode, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_an_error(text in "(postgres://)?\\PC{0,20}[@/:?=&%]?\\PC{0,20}[@/:?=&%]?\\PC{0,20}") {
            read_anything(text.as_bytes());
        }
    }
}

//! Replicas that speak HTTPS.
//!
//! Each origin makes its own certificate; a stage that does not know it must refuse to speak.

use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::types::FailureKind;

/// A listener named `localhost` that offers these protocols, and the certificate to trust.
async fn certified(protocols: &[&[u8]]) -> (TcpListener, TlsAcceptor, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, TlsAcceptor::from(Arc::new(config)), roots)
}

/// An HTTPS origin named `localhost`; gives its port and its certificate.
async fn https_origin(clean: bool) -> (u16, rustls::RootCertStore) {
    let (listener, acceptor, roots) = certified(&[b"h2", b"http/1.1"]).await;
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else {
                continue;
            };
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
            tokio::spawn(serve(Conn::new(tls), clean));
        }
    });
    (port, roots)
}

async fn serve(mut conn: Conn<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>, clean: bool) {
    while conn.request().await.is_some() {
        if clean {
            conn.answer("secret").await;
        } else {
            // Ends with the connection, but without the notice that TLS has for it.
            conn.say("HTTP/1.1 200 OK\r\n\r\nhalf").await;
            return;
        }
    }
}

fn rig(port: u16, roots: rustls::RootCertStore) -> Rig {
    let rig = Rig::with(config(format!("https://localhost:{port}")), Some(roots));
    rig.endpoint
        .set_addresses(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    rig
}

#[tokio::test]
async fn an_https_replica_is_spoken_to_over_verified_tls() {
    let (port, roots) = https_origin(true).await;
    let trusting = rig(port, roots);
    assert_eq!(trusting.fetch(get("/")).await.unwrap(), (200, "secret".into()));
    let wary = rig(port, rustls::RootCertStore::empty());
    let failure = wary.fetch(get("/")).await.unwrap_err();
    assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectFailed, false));
}

#[tokio::test]
async fn a_tls_stream_that_ends_without_notice_was_cut_off() {
    let (port, roots) = https_origin(false).await;
    let failure = rig(port, roots).fetch(get("/")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::UpstreamReset);
}

/// An origin named `localhost` that offers these protocols; over HTTP/2 it answers.
async fn offering(protocols: &[&[u8]]) -> (u16, rustls::RootCertStore) {
    let (listener, acceptor, roots) = certified(protocols).await;
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else {
                continue;
            };
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(tls).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().scheme_str(), Some("https"));
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from("secret"), true).unwrap();
                }
            });
        }
    });
    (port, roots)
}

#[tokio::test]
async fn http_2_over_tls_is_spoken_only_where_the_replica_agrees() {
    let over_h2 = |port, roots| {
        let mut config = config(format!("https://localhost:{port}"));
        config.protocol = crate::config::UpstreamProtocol::H2;
        let rig = Rig::with(config, Some(roots));
        rig.endpoint
            .set_addresses(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
        rig
    };
    let (port, roots) = offering(&[b"h2", b"http/1.1"]).await;
    assert_eq!(
        over_h2(port, roots).fetch(get("/")).await.unwrap(),
        (200, "secret".into())
    );
    for others in [&[b"http/1.1".as_slice()] as &[&[u8]], &[]] {
        let (port, roots) = offering(others).await;
        let failure = over_h2(port, roots).fetch(get("/")).await.unwrap_err();
        assert_eq!((failure.kind, failure.sent), (FailureKind::ConnectFailed, false));
    }
}

//! Asks the administrative listener of a running proxy; for commands that need no runtime.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// For connecting, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(2);
/// No answer is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// Status and content of the answer to `GET target` at `address`.
///
/// # Errors
/// When nobody answers in time, or what answers does not speak HTTP.
pub(super) fn get(address: SocketAddr, target: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let address = reachable(address);
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    write!(
        connection,
        "GET {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    connection.take(LONGEST).read_to_end(&mut answer)?;
    read(&answer).ok_or_else(|| std::io::Error::other("the answer is not HTTP"))
}

/// Status and content of an answer that ends with its connection.
fn read(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let head = memchr::memmem::find(answer, b"\r\n\r\n")?;
    // "HTTP/1.1 200": the status line up to the status.
    let start = std::str::from_utf8(answer.get(..12)?).ok()?;
    let status = start.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()?;
    Some((status, answer[head + 4..].to_vec()))
}

/// A listener on all addresses is reached on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    fn answer_with(answer: &'static [u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 10];
            connection.read_exact(&mut request).unwrap();
            connection.write_all(answer).unwrap();
            // Taken whole, so that closing does not reset what was sent.
            let mut rest = Vec::new();
            let _ = connection.shutdown(std::net::Shutdown::Write);
            let _ = connection.read_to_end(&mut rest);
            request
        });
        let status = get(address, "/ready");
        assert_eq!(&server.join().unwrap(), b"GET /ready");
        status
    }

    #[test]
    fn status_and_content_are_read_and_what_is_not_http_is_refused() {
        let ok = answer_with(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nready").unwrap();
        assert_eq!(ok, (200, b"ready".to_vec()));
        assert_eq!(
            answer_with(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
                .unwrap()
                .0,
            503
        );
        assert!(answer_with(b"SSH-2.0-OpenSSH").is_err());
        assert!(answer_with("HTTP/1.1é 200\r\n\r\n".as_bytes()).is_err());
        assert!(answer_with(b"HTTP").is_err());
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:9901"), "127.0.0.1:9901");
        assert_eq!(at("[::]:9901"), "[::1]:9901");
        assert_eq!(at("10.1.2.3:9901"), "10.1.2.3:9901");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(answer in prop::collection::vec(any::<u8>(), 0..64), start in "(HTTP/1.1 200)?.{0,9}(\r\n\r\n)?") {
            let _ = read(&answer);
            let _ = read(start.as_bytes());
        }
    }
}

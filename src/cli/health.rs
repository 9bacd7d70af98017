//! `health`: asks `/ready` of a running proxy; for containers, which have no curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, INVALID, OK, fail, print};
use crate::config::AdminConfig;

/// For connecting, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The administrative listener [default: DIFY_EDGE__ADMIN__ADDRESS, or 127.0.0.1:9901].
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

/// Runs the command.
pub fn run(args: &HealthArgs) -> ExitCode {
    let address = match (args.admin, std::env::var("DIFY_EDGE__ADMIN__ADDRESS")) {
        (Some(address), _) => address,
        (None, Ok(text)) if !text.is_empty() => match text.parse() {
            Ok(address) => address,
            Err(error) => {
                return fail(
                    INVALID,
                    &format!("environment DIFY_EDGE__ADMIN__ADDRESS: {error}"),
                );
            }
        },
        _ => AdminConfig::default().address,
    };
    match ask(reachable(address)) {
        Ok(200) => {
            print("ready\n");
            ExitCode::from(OK)
        }
        Ok(status) => fail(FAILED, &format!("{address} is not ready: status {status}")),
        Err(error) => fail(FAILED, &format!("{address}: {error}")),
    }
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

/// The status of `GET /ready`.
fn ask(address: SocketAddr) -> std::io::Result<u16> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    write!(
        connection,
        "GET /ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    // "HTTP/1.1 200": the status line up to the status.
    let mut start = [0; 12];
    connection.read_exact(&mut start)?;
    std::str::from_utf8(&start)
        .ok()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.get(9..)?.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answer_with(answer: &'static [u8]) -> std::io::Result<u16> {
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
        let status = ask(address);
        assert_eq!(&server.join().unwrap(), b"GET /ready");
        status
    }

    #[test]
    fn the_status_of_the_answer_decides() {
        assert_eq!(answer_with(b"HTTP/1.1 200 OK\r\n\r\n").unwrap(), 200);
        assert_eq!(
            answer_with(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap(),
            503
        );
        assert!(answer_with(b"SSH-2.0-OpenSSH").is_err());
        assert!(answer_with("HTTP/1.1é 200".as_bytes()).is_err());
        assert!(answer_with(b"HTTP").is_err());
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:9901"), "127.0.0.1:9901");
        assert_eq!(at("[::]:9901"), "[::1]:9901");
        assert_eq!(at("10.1.2.3:9901"), "10.1.2.3:9901");
    }
}

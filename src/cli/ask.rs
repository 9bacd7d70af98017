//! Asks the administrative listener of a running proxy; for commands that need no runtime.

use std::io::{Read, Write};
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{FAILED, INVALID};
use crate::admin::token_in;
use crate::config::{AdminConfig, Token};

/// For connecting, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(2);
/// For the answer to a write: it may look at every stored answer.
const LONG_PATIENCE: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const LONGEST: u64 = 1 << 20;
/// Where the address may stand, too.
const VARIABLE: &str = "DIFY_EDGE__ADMIN__ADDRESS";

/// Where the token may stand, too.
const TOKEN_VARIABLE: &str = "DIFY_EDGE_ADMIN_TOKEN";

/// Which proxy is asked; the same for every command that needs no configuration.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The administrative listener, like 127.0.0.1:9901 [default: DIFY_EDGE__ADMIN__ADDRESS, or 127.0.0.1:9901].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    admin: Option<SocketAddr>,
}

impl AdminArgs {
    /// The address of the administrative listener.
    ///
    /// # Errors
    /// When the environment has what is none.
    pub(super) fn address(&self) -> Result<SocketAddr, String> {
        match (self.admin, std::env::var(VARIABLE)) {
            (Some(address), _) => Ok(address),
            (None, Ok(text)) if !text.is_empty() => {
                address(&text).map_err(|error| format!("environment {VARIABLE}: {error}"))
            }
            _ => Ok(AdminConfig::default().address),
        }
    }
}

/// The token; the same for every command that changes something.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// The administrative token. Whoever lists the processes of this machine sees it, unlike that of --token-file or
    /// of the environment, DIFY_EDGE_ADMIN_TOKEN.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// A file that holds the token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The token, from where it was given first: the command line, the environment.
    ///
    /// # Errors
    /// When the file cannot be read, or what was given is no usable token: a sentence that begins with where that was.
    pub(super) fn token(&self) -> Result<Option<Token>, String> {
        if let Some(file) = &self.token_file {
            return token_in(file)
                .map(Some)
                .map_err(|why| format!("--token-file: {why}"));
        }
        let (token, from) = match (&self.token, std::env::var(TOKEN_VARIABLE)) {
            (Some(text), _) => (Token(text.clone()), "--token"),
            (None, Ok(text)) if !text.is_empty() => (Token(text), TOKEN_VARIABLE),
            _ => return Ok(None),
        };
        token
            .problem()
            .map_or(Ok(Some(token)), |problem| Err(format!("{from}: {problem}")))
    }
}

/// `ADDR:PORT`, also written as a URL.
fn address(text: &str) -> Result<SocketAddr, AddrParseError> {
    let rest = text
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    rest.unwrap_or(text).parse()
}

/// Why there is no content: the exit code, and what to say.
pub(super) type NoContent = (u8, String);

/// The content of an answer with status 200 at `address`.
///
/// # Errors
/// Nobody answers, or the answer is an error: then its message, when it has one.
pub(super) fn content(
    address: SocketAddr,
    answer: std::io::Result<(u16, Vec<u8>)>,
) -> Result<Vec<u8>, NoContent> {
    let (status, content) = answer.map_err(|error| {
        (
            FAILED,
            format!("{address}: no running proxy answers there: {error}"),
        )
    })?;
    if status == 200 {
        return Ok(content);
    }
    let json: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
    let why = json["message"]
        .as_str()
        .map_or_else(|| format!("status {status}"), str::to_owned);
    // 400: what it was asked is not valid.
    let code = if status == 400 { INVALID } else { FAILED };
    let hint = match status {
        401 => "\ngive the token with --token, --token-file or DIFY_EDGE_ADMIN_TOKEN",
        _ => "",
    };
    Err((code, format!("{address}: {why}{hint}")))
}

/// Status and content of the answer to `GET target` at `address`.
///
/// # Errors
/// When nobody answers in time, or what answers does not speak HTTP.
pub(super) fn get(address: SocketAddr, target: &str) -> std::io::Result<(u16, Vec<u8>)> {
    exchange(address, &format!("GET {target}"), "\r\n", PATIENCE)
}

/// The same of `POST target` with JSON and perhaps the token, which is usable ([`Token::problem`]).
///
/// # Errors
/// As those of [`get`].
pub(super) fn post(
    address: SocketAddr,
    target: &str,
    token: Option<&Token>,
    json: &str,
) -> std::io::Result<(u16, Vec<u8>)> {
    let bearer = token.map(|token| format!("authorization: Bearer {}\r\n", token.0));
    let rest = format!(
        "{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        bearer.unwrap_or_default(),
        json.len()
    );
    exchange(address, &format!("POST {target}"), &rest, LONG_PATIENCE)
}

fn exchange(
    address: SocketAddr,
    start: &str,
    rest: &str,
    patience: Duration,
) -> std::io::Result<(u16, Vec<u8>)> {
    let address = reachable(address);
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(patience))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let request = format!("{start} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{rest}");
    connection.write_all(request.as_bytes())?;
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
    fn the_message_of_a_refusal_is_said_and_where_the_token_goes() {
        let at = SocketAddr::from(([127, 0, 0, 1], 9901));
        let say = |status, text: &str| content(at, Ok((status, text.into())));
        assert_eq!(say(200, "x"), Ok(b"x".to_vec()));
        let refused = |code, why: &str| Err((code, format!("127.0.0.1:9901: {why}")));
        assert_eq!(say(400, r#"{"message": "key: no"}"#), refused(INVALID, "key: no"));
        assert_eq!(say(403, r#"{"message": "off"}"#), refused(FAILED, "off"));
        for strange in ["", "<html>", "[]", r#"{"message": 1}"#] {
            assert_eq!(say(502, strange), refused(FAILED, "status 502"), "{strange}");
        }
        let (code, why) = say(401, r#"{"message": "needed"}"#).unwrap_err();
        assert!(
            code == FAILED && why.starts_with("127.0.0.1:9901: needed\ngive the token with "),
            "{why}"
        );
        let refused = content(at, Err(std::io::ErrorKind::ConnectionRefused.into())).unwrap_err();
        assert!(
            refused
                .1
                .contains("no running proxy answers there: connection refused"),
            "{}",
            refused.1
        );
    }

    #[test]
    fn an_address_may_be_written_as_a_url() {
        let written = SocketAddr::from(([127, 0, 0, 1], 9901));
        for text in [
            "127.0.0.1:9901",
            "http://127.0.0.1:9901",
            "http://127.0.0.1:9901/",
        ] {
            assert_eq!(address(text), Ok(written), "{text}");
        }
        for text in [
            "127.0.0.1:9901/",
            "https://127.0.0.1:9901",
            "http://127.0.0.1",
            "localhost:9901",
            "",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
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

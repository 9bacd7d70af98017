//! HTTP/1 bytes: reading a request as the replay needs it, writing the head of a captured response.
//!
//! Only what a replay needs: the proxy's own HTTP is hyper's. Written by hand because a captured response must go out
//! with its own order and spelling of fields and its own reason phrase.

use std::io;
use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::{CapturedResponse, Fields};

/// The largest head that is read; one byte more ends the connection.
const MOST_HEAD: usize = 64 << 10;
/// The largest body that is read.
const MOST_BODY: usize = 16 << 20;

/// A request that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) version: String,
    pub(super) fields: Fields,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The values of a field in one, or nothing when it is not there.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        joined(&self.fields, name)
    }

    /// Whether the client wants the connection closed after the answer.
    pub(super) fn closes(&self) -> bool {
        match self.field("connection") {
            Some(value) if value.eq_ignore_ascii_case("close") => true,
            Some(value) if value.eq_ignore_ascii_case("keep-alive") => false,
            _ => self.version != "HTTP/1.1",
        }
    }
}

/// The values of the field `name` in one, as RFC 9110 section 5.3 joins them; cookies with `; `.
pub(super) fn joined(fields: &Fields, name: &str) -> Option<String> {
    let values: Vec<_> = fields
        .iter()
        .filter(|(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect();
    let separator = if name.eq_ignore_ascii_case("cookie") {
        "; "
    } else {
        ", "
    };
    (!values.is_empty()).then(|| values.join(separator))
}

/// A connection with what was read from it and not yet used.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Says that nothing more comes.
    pub(super) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Waits until there is something unread; `false` when the peer has closed instead.
    pub(super) async fn readable(&mut self) -> bool {
        !self.unread.is_empty() || self.fill().await.is_ok()
    }

    /// Resolves when the peer has gone. Bytes of a next request are kept meanwhile.
    pub(super) async fn gone(&mut self) {
        while self.unread.len() < MOST_BODY && self.fill().await.is_ok() {}
    }

    /// The next request.
    ///
    /// # Errors
    /// When the peer closes before its end, or when it is no request of HTTP/1 or too large.
    pub(super) async fn request(&mut self) -> io::Result<Request> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                break at;
            }
            if self.unread.len() > MOST_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill().await?;
        };
        let mut request = parse_head(&self.unread[..end]).ok_or(io::ErrorKind::InvalidData)?;
        self.unread.drain(..end + 4);
        if request.field("expect").is_some() {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        request.body = if request.field("transfer-encoding").is_some() {
            self.chunked().await?
        } else {
            let length = match request.field("content-length") {
                Some(length) => length.parse().map_err(|_| io::ErrorKind::InvalidData)?,
                None => 0,
            };
            self.take(length).await?
        };
        Ok(request)
    }

    async fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            if size == 0 {
                // Trailers are read and forgotten.
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            if body.len().saturating_add(size) > MOST_BODY {
                return Err(io::ErrorKind::InvalidData.into());
            }
            body.extend(self.take(size).await?);
            self.take(2).await?;
        }
    }

    /// A line, without its end.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..at]).into_owned();
                self.unread.drain(..at + 2);
                return Ok(line);
            }
            if self.unread.len() > MOST_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > MOST_BODY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while self.unread.len() < length {
            self.fill().await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.unread).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// The request line and fields, or nothing when these bytes are none.
fn parse_head(head: &[u8]) -> Option<Request> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut line = lines.next()?.split(' ');
    let (method, target, version) = (line.next()?, line.next()?, line.next()?);
    if line.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<Option<Fields>>()?;
    Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        fields,
        body: Vec::new(),
    })
}

/// The head of a captured response, with `date` for its own `Date` if there is one.
pub(super) fn response_head(response: &CapturedResponse, date: Option<SystemTime>) -> Vec<u8> {
    let mut head = format!(
        "{} {} {}\r\n",
        response.http_version, response.status, response.reason
    );
    for (name, value) in &response.headers {
        match date.filter(|_| name.eq_ignore_ascii_case("date")) {
            Some(now) => head.push_str(&format!("{name}: {}\r\n", httpdate::fmt_http_date(now))),
            None => head.push_str(&format!("{name}: {value}\r\n")),
        }
    }
    head.push_str("\r\n");
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_head(&bytes);
        }
    }

    #[test]
    fn a_head_is_taken_apart() {
        let request = parse_head(b"GET /a?b HTTP/1.1\r\nHost: x\r\nX:  y ").unwrap();
        assert_eq!(
            (request.method.as_str(), request.target.as_str()),
            ("GET", "/a?b")
        );
        assert_eq!(request.field("x").as_deref(), Some("y"));
        assert!(!request.closes());
        assert_eq!(parse_head(b"GET /a b HTTP/1.1"), None);
        assert_eq!(parse_head(b"GET /a HTTP/2.0"), None);
    }

    #[test]
    fn cookies_that_came_in_two_fields_are_one_value() {
        let fields = vec![("cookie".into(), "a=1".into()), ("Cookie".into(), "b=2".into())];
        assert_eq!(joined(&fields, "cookie").as_deref(), Some("a=1; b=2"));
    }
}

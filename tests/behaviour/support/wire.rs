//! HTTP/1.1 as bytes: heads and bodies read from a socket without any opinion on them.
//!
//! Client and origin share it; it is no part of the proxy, so that the proxy's reading is checked by another's.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Field lines in the order in which they came.
pub type Fields = Vec<(String, String)>;

/// The values of `name`, in order.
pub fn values<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}

/// The only value of `name`; `None` without one.
pub fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let all = values(fields, name);
    assert!(all.len() < 2, "more than one {name}: {all:?}");
    all.first().copied()
}

/// A start line and its fields.
#[derive(Debug, Clone)]
pub struct Head {
    /// The first line, without its end.
    pub line: String,
    /// The fields.
    pub fields: Fields,
}

/// How long a message's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks until one of no length.
    Chunked,
    /// All until the connection ends.
    UntilClose,
}

impl Head {
    /// As the fields say it; `None` without `Content-Length` and `Transfer-Encoding`.
    pub fn framing(&self) -> Option<Framing> {
        if value(&self.fields, "transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            return Some(Framing::Chunked);
        }
        let length = value(&self.fields, "content-length")?;
        Some(Framing::Length(length.parse().expect("a length")))
    }
}

/// A socket with what was read too far.
pub struct Buffered<S> {
    /// The socket.
    pub socket: S,
    held: Vec<u8>,
    used: usize,
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    /// Nothing read yet.
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            held: Vec::new(),
            used: 0,
        }
    }

    /// What was read and not used yet.
    pub fn held(&self) -> &[u8] {
        &self.held[self.used..]
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let taken = self.held()[..length].to_vec();
        self.used += length;
        if self.used == self.held.len() {
            self.held.clear();
            self.used = 0;
        }
        taken
    }

    /// Reads more; false at the end.
    pub async fn more(&mut self) -> io::Result<bool> {
        if self.used > 0 {
            self.held.drain(..self.used);
            self.used = 0;
        }
        self.held.reserve(16 * 1024);
        Ok(self.socket.read_buf(&mut self.held).await? > 0)
    }

    async fn must_have_more(&mut self) -> io::Result<()> {
        if self.more().await? {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// One line without its end.
    pub async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = memchr::memmem::find(self.held(), b"\r\n") {
                let line = self.take(at + 2);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.must_have_more().await?;
        }
    }

    /// Exactly so many bytes.
    pub async fn exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.held().len() < length {
            self.must_have_more().await?;
        }
        Ok(self.take(length))
    }

    /// Some bytes, at most `limit`; at least one.
    pub async fn some(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        if self.held().is_empty() {
            self.must_have_more().await?;
        }
        Ok(self.take(self.held().len().min(limit)))
    }

    /// One message head; `None` when the connection ended before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        if self.held().is_empty() && !self.more().await? {
            return Ok(None);
        }
        let line = self.line().await?;
        let fields = self.fields().await?;
        Ok(Some(Head { line, fields }))
    }

    /// Field lines up to the empty one.
    pub async fn fields(&mut self) -> io::Result<Fields> {
        let mut fields = Fields::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| io::Error::other(format!("not a field: {line}")))?;
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// One chunk; `None` for the last one, whose trailers are still to be read by [`Self::fields`].
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let digits = line.split(';').next().unwrap_or_default();
        let length = usize::from_str_radix(digits, 16)
            .map_err(|_| io::Error::other(format!("not a chunk: {line}")))?;
        if length == 0 {
            return Ok(None);
        }
        let data = self.exact(length).await?;
        if self.exact(2).await? != b"\r\n" {
            return Err(io::Error::other("a chunk without its end"));
        }
        Ok(Some(data))
    }
}

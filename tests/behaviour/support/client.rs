//! A client that sends exactly the bytes it is given, and tells exactly what came back.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{self, Buffered, Fields, Framing, Head};
use super::within;

/// What can be read and written.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// One connection.
pub struct Client {
    stream: Buffered<Box<dyn Socket>>,
}

/// One response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// Status code.
    pub status: u16,
    /// Reason phrase.
    pub reason: String,
    /// Fields in order.
    pub fields: Fields,
    /// Content without chunk framing.
    pub body: Vec<u8>,
    /// The chunks, when it came in chunks.
    pub chunks: Vec<Vec<u8>>,
    /// Trailer fields.
    pub trailers: Fields,
    /// Status codes of the interim responses before it.
    pub interim: Vec<u16>,
    /// Why the content is not whole.
    pub cut: Option<io::ErrorKind>,
}

impl Answer {
    /// The only value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        wire::value(&self.fields, name)
    }

    /// All values of a field.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        wire::values(&self.fields, name)
    }

    /// What `Cache-Status` says.
    pub fn cache_status(&self) -> &str {
        self.fields("cache-status").last().copied().unwrap_or_default()
    }

    /// Whether it came from memory.
    pub fn is_hit(&self) -> bool {
        self.cache_status().contains("; hit")
    }

    /// Whether it went into the cache.
    pub fn is_stored(&self) -> bool {
        self.cache_status().contains("; stored")
    }

    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl Client {
    /// A new TCP connection.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address))
            .await
            .expect("the listener accepts");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self::over(stream)
    }

    /// Over a socket that is there.
    pub fn over(socket: impl Socket + 'static) -> Self {
        Self {
            stream: Buffered::new(Box::new(socket)),
        }
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the peer reads");
    }

    /// Sends these bytes, unless the peer has left.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("the peer to read", async {
            self.stream.socket.write_all(bytes.as_ref()).await?;
            self.stream.socket.flush().await
        })
        .await
    }

    /// The next head, interim ones included.
    pub async fn head(&mut self) -> Head {
        within("a response head", self.stream.head())
            .await
            .expect("a response head")
            .expect("a response before the connection ends")
    }

    /// The next head that is not an interim one, and the codes of those.
    pub async fn final_head(&mut self) -> (Head, Vec<u16>) {
        let mut interim = Vec::new();
        loop {
            let head = self.head().await;
            match status_of(&head) {
                code @ 100..=199 if code != 101 => interim.push(code),
                _ => return (head, interim),
            }
        }
    }

    /// The next chunk of a response whose head was read.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        within("a chunk", self.stream.chunk()).await
    }

    /// Any bytes that come next.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        within("some bytes", self.stream.some(64 * 1024)).await
    }

    /// Exactly so many bytes.
    pub async fn exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        within("some bytes", self.stream.exact(length)).await
    }

    /// The next response to a request of this method.
    pub async fn response(&mut self, method: &str) -> Answer {
        let (head, interim) = self.final_head().await;
        let mut answer = answer(&head, interim);
        let framing = match (method, answer.status) {
            ("HEAD", _) | (_, 101 | 204 | 304) => Framing::Length(0),
            _ => head.framing().unwrap_or(Framing::UntilClose),
        };
        let read = within("the content", self.content(framing, &mut answer)).await;
        answer.cut = read.err().map(|error| error.kind());
        answer
    }

    async fn content(&mut self, framing: Framing, answer: &mut Answer) -> io::Result<()> {
        match framing {
            Framing::Length(length) => {
                while (answer.body.len() as u64) < length {
                    let rest = length as usize - answer.body.len();
                    answer.body.extend(self.stream.some(rest).await?);
                }
            }
            Framing::Chunked => {
                while let Some(chunk) = self.stream.chunk().await? {
                    answer.body.extend_from_slice(&chunk);
                    answer.chunks.push(chunk);
                }
                answer.trailers = self.stream.fields().await?;
            }
            Framing::UntilClose => loop {
                let held = self.stream.held().len();
                if held > 0 {
                    let more = self.stream.exact(held).await?;
                    answer.body.extend(more);
                } else if !self.stream.more().await? {
                    break;
                }
            },
        }
        Ok(())
    }

    /// Sends a request and reads its response.
    pub async fn exchange(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        let method = request.split(|byte| *byte == b' ').next().unwrap_or_default();
        let method = String::from_utf8_lossy(method).into_owned();
        self.send(request).await;
        self.response(&method).await
    }

    /// Waits for the end of the connection: true for a clean one, false for a reset.
    ///
    /// # Panics
    /// When more bytes come.
    pub async fn ends_cleanly(&mut self) -> bool {
        assert!(
            self.stream.held().is_empty(),
            "more came: {:?}",
            String::from_utf8_lossy(self.stream.held())
        );
        match within("the end of the connection", self.stream.more()).await {
            Ok(false) => true,
            Ok(true) => panic!("more came: {:?}", String::from_utf8_lossy(self.stream.held())),
            Err(_) => false,
        }
    }
}

fn status_of(head: &Head) -> u16 {
    let code = head.line.split(' ').nth(1).unwrap_or_default();
    code.parse()
        .unwrap_or_else(|_| panic!("not a status line: {}", head.line))
}

fn answer(head: &Head, interim: Vec<u16>) -> Answer {
    let (version, rest) = head.line.split_once(' ').expect("a status line");
    let (_, reason) = rest.split_once(' ').unwrap_or_default();
    Answer {
        version: version.to_owned(),
        status: status_of(head),
        reason: reason.to_owned(),
        fields: head.fields.clone(),
        body: Vec::new(),
        chunks: Vec::new(),
        trailers: Fields::new(),
        interim,
        cut: None,
    }
}

/// A request without content.
pub fn get(target: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    request("GET", target, fields, b"")
}

/// A request with JSON content.
pub fn post(target: &str, fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut fields = fields.to_vec();
    fields.push(("Content-Type", "application/json"));
    request("POST", target, &fields, body.as_bytes())
}

/// A request for host `dify.test`; with a `Content-Length` unless it is a GET or HEAD without content.
pub fn request(method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: dify.test\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || !matches!(method, "GET" | "HEAD") {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

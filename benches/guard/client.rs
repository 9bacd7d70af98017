//! A client of HTTP/1.1 on one connection, with blocking sockets: it costs little, so that the load does not measure
//! itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use memchr::memmem;
use socket2::{Domain, Socket, Type};

/// One connection; made anew when it ends.
pub(crate) struct Client {
    server: SocketAddr,
    /// Where it comes from.
    own: Ipv4Addr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

/// What matters of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the guard says that it gave it.
    pub(crate) by_guard: bool,
    /// Whether it was stored.
    pub(crate) is_hit: bool,
}

impl Client {
    pub(crate) fn new(server: SocketAddr, own: Ipv4Addr) -> Self {
        Self {
            server,
            own,
            stream: None,
            buffer: vec![0; 16 << 10],
        }
    }

    /// Sends one request and reads its answer, which has to have a length.
    pub(crate) fn ask(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::from((self.own, 0)).into())?;
                socket.connect(&self.server.into())?;
                let stream = TcpStream::from(socket);
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                stream
            }
        };
        stream.write_all(request)?;
        let mut read = 0;
        let head = loop {
            read += more(&mut stream, &mut self.buffer[read..])?;
            if let Some(end) = memmem::find(&self.buffer[..read], b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = &self.buffer[..head];
        let has = |what: &[u8]| memmem::find(text, what).is_some();
        let (length, closes) = framing(text);
        let answer = Answer {
            status: number(&text[9..12]) as u16,
            by_guard: has(b"detail=guard"),
            is_hit: has(b"; hit"),
        };
        let mut left = (head + length).saturating_sub(read);
        while left > 0 {
            let most = left.min(self.buffer.len());
            left -= more(&mut stream, &mut self.buffer[..most])?;
        }
        self.stream = (!closes).then_some(stream);
        Ok(answer)
    }
}

fn more(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream.read(buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}

/// The length of the body, and whether the connection ends behind it.
pub(crate) fn framing(head: &[u8]) -> (usize, bool) {
    let (mut length, mut closes) = (0, false);
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = number(value);
        } else if name.eq_ignore_ascii_case(b"connection") {
            closes = value.eq_ignore_ascii_case(b"close");
        }
    }
    (length, closes)
}

fn number(digits: &[u8]) -> usize {
    digits.iter().fold(0, |number, digit| {
        number * 10 + usize::from(digit.wrapping_sub(b'0'))
    })
}

/// A request as client libraries send it. `agent` tells the origin whose it is.
pub(crate) fn request(method: &str, target: &str, agent: &str, credential: &str, body: &str) -> Vec<u8> {
    let kind = if body.is_empty() {
        String::new()
    } else {
        format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )
    };
    format!(
        "{method} {target} HTTP/1.1\r\nHost: dify.example\r\n{credential}\r\nUser-Agent: {agent}\r\n\
         Accept: */*\r\n{kind}\r\n{body}"
    )
    .into_bytes()
}

/// The field with a key of the service API.
pub(crate) fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}")
}

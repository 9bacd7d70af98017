//! One client: one kept connection, as a client library keeps it.
//!
//! A request that meets a connection which the server has closed meanwhile is asked again on a new one, a write only
//! if it was never sent; whatever else goes wrong is an error that the report counts.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::super::replay::{Content, Record};
use crate::types::time::Clock;

/// Longer than this no client waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request that can be asked over and over.
#[derive(Debug, Clone)]
pub struct Question {
    method: Method,
    uri: Uri,
    fields: HeaderMap,
    body: Bytes,
    /// What a page must say; nothing for what is new each time.
    page: Option<Bytes>,
}

impl Question {
    /// The question of a captured exchange; nothing when it is not one that a client library can ask.
    pub fn of(record: &Record) -> Option<Self> {
        let captured = &record.request;
        let fields = captured
            .headers
            .iter()
            .filter(|(name, _)| {
                !name.eq_ignore_ascii_case("host") && !name.eq_ignore_ascii_case("content-length")
            })
            .map(|(name, value)| Some((name.parse::<http::HeaderName>().ok()?, value.parse().ok()?)))
            .collect::<Option<HeaderMap>>()?;
        let page = record.response.body.as_ref().map(|body| body.bytes().into());
        Some(Self {
            page: page.filter(|_| captured.method == "GET"),
            method: captured.method.parse().ok()?,
            uri: captured.path.parse().ok()?,
            fields,
            body: captured
                .body
                .as_ref()
                .map(Content::bytes)
                .unwrap_or_default()
                .into(),
        })
    }

    /// A plain GET of `path`.
    pub fn get(path: &'static str) -> Self {
        Self {
            method: Method::GET,
            uri: Uri::from_static(path),
            fields: HeaderMap::new(),
            body: Bytes::new(),
            page: None,
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Whether the cache in front answered from memory.
    pub hit: bool,
    /// Whether it came by another request's fetch.
    pub shared: bool,
    /// From asking to the first piece of the body.
    pub first: Duration,
    /// From asking to the end.
    pub total: Duration,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks one server, one question after the other.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client of `address`; it connects when it asks.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Asks and reads the answer to its end.
    ///
    /// # Errors
    /// What went wrong, in words: no connection, a broken answer, a status of 400 or more, another page than
    /// was captured, 30 s without an end.
    pub async fn ask(&mut self, question: &Question) -> Result<Answer, String> {
        let asked = tokio::time::timeout(PATIENCE, self.exchange(question)).await;
        let answer = asked.unwrap_or_else(|_| Err("no answer within 30 s".into()));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(&mut self, question: &Question) -> Result<Answer, String> {
        let start = Clock::System.now().monotonic;
        let response = self.response(question).await?;
        let status = response.status();
        let hit = cache_says(response.headers(), "hit");
        let shared = cache_says(response.headers(), "collapsed");
        let mut incoming = response.into_body();
        let mut body = Vec::new();
        let mut first = None;
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| format!("an answer broke off: {error}"))?;
            first.get_or_insert_with(|| start.elapsed());
            if let Some(data) = frame.data_ref() {
                body.extend_from_slice(data);
            }
        }
        if status.as_u16() >= 400 {
            return Err(format!(
                "{} {} answered {status}",
                question.method,
                question.uri.path()
            ));
        }
        if question.page.as_ref().is_some_and(|page| *page != body) {
            return Err(format!("{} answered something else", question.uri.path()));
        }
        let total = start.elapsed();
        Ok(Answer {
            hit,
            shared,
            first: first.unwrap_or(total),
            total,
            body,
        })
    }

    async fn response(&mut self, question: &Question) -> Result<Response<Incoming>, String> {
        if let Some(mut kept) = self.connection.take()
            && kept.ready().await.is_ok()
        {
            match kept.send_request(self.request(question)).await {
                Ok(response) => {
                    self.connection = Some(kept);
                    return Ok(response);
                }
                // A write may have been carried out unless it was never sent.
                Err(error) if error.is_canceled() => {}
                Err(error) if question.method == Method::GET && closed_before_answer(&error) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut fresh = self
            .connect()
            .await
            .map_err(|why| format!("cannot connect: {why}"))?;
        let response = fresh.send_request(self.request(question)).await;
        self.connection = Some(fresh);
        response.map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped or the server closes; requests learn of its errors themselves.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, question: &Question) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(question.body.clone()));
        *request.method_mut() = question.method.clone();
        *request.uri_mut() = question.uri.clone();
        *request.headers_mut() = question.fields.clone();
        if let Ok(host) = self.address.to_string().parse() {
            request.headers_mut().insert(http::header::HOST, host);
        }
        request
    }
}

/// Whether a kept connection turned out to be closed when the request was sent.
fn closed_before_answer(error: &hyper::Error) -> bool {
    let reset = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
            )
        });
    error.is_closed() || error.is_incomplete_message() || reset
}

/// Whether `Cache-Status` (RFC 9211 section 2) has the parameter `word`.
fn cache_says(fields: &HeaderMap, word: &str) -> bool {
    fields
        .get_all("cache-status")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split([';', ',']).any(|part| part.trim() == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_is_read_from_cache_status() {
        let of = |value: &'static str| {
            let fields = HeaderMap::from_iter([(
                http::HeaderName::from_static("cache-status"),
                http::HeaderValue::from_static(value),
            )]);
            cache_says(&fields, "hit")
        };
        assert!(of("dify-edge; hit; ttl=5"));
        assert!(of("dify-edge; hit"));
        assert!(!of("dify-edge; fwd=uri-miss; stored"));
        assert!(!of("hitter; fwd=miss"));
        assert!(!cache_says(&HeaderMap::new(), "hit"));
    }
}

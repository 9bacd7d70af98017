//! The recorded exchanges with a real dify-api, typed.

use std::sync::OnceLock;

use serde::Deserialize;

use super::wire::Fields;

/// One recorded exchange.
#[derive(Debug, Clone)]
pub struct Record {
    /// Name, unique within its variant.
    pub name: String,
    /// `fork`, `upstream_like` or `compression_on`.
    pub variant: String,
    /// Method.
    pub method: String,
    /// Target as sent.
    pub target: String,
    /// Fields of the request; empty when there were none at all.
    pub fields: Fields,
    /// The request as bytes, exactly as it was sent.
    pub request: Vec<u8>,
    /// What was answered.
    pub response: Answered,
}

/// The recorded response.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Version of the status line.
    pub version: String,
    /// Status code.
    pub status: u16,
    /// Reason phrase.
    pub reason: String,
    /// Fields in order.
    pub fields: Fields,
    /// How the content ended.
    pub framing: String,
    /// The content, without chunk framing.
    pub body: Vec<u8>,
    /// The pieces of a stream.
    pub chunks: Vec<Vec<u8>>,
}

impl Record {
    /// `name[variant]`.
    pub fn title(&self) -> String {
        format!("{}[{}]", self.name, self.variant)
    }

    /// The values of a request field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        super::wire::values(&self.fields, name)
    }
}

#[derive(Deserialize)]
struct Line {
    name: String,
    variant: String,
    request: Option<Request>,
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    path: String,
    http_version: String,
    headers: Option<Fields>,
    body: Option<Content>,
    raw: Option<Content>,
}

#[derive(Deserialize)]
struct Response {
    http_version: String,
    status: u16,
    reason: String,
    headers: Fields,
    framing: String,
    body: Option<Content>,
    chunks: Option<Vec<Chunk>>,
}

#[derive(Deserialize)]
struct Chunk {
    data: String,
}

#[derive(Deserialize)]
struct Content {
    text: Option<String>,
    base64: Option<String>,
    length: Option<usize>,
}

impl Content {
    /// A body that the recording cut short is filled up, so that its length is as announced.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = match (&self.text, &self.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(text)) => base64(text),
            (None, None) => panic!("content of no known kind"),
        };
        if let Some(length) = self.length {
            bytes.resize(length, b' ');
        }
        bytes
    }
}

/// Every record that is an exchange, in the order of recording.
pub fn all() -> &'static [Record] {
    static ALL: OnceLock<Vec<Record>> = OnceLock::new();
    ALL.get_or_init(|| {
        include_str!("../../fixtures/captures.jsonl")
            .lines()
            .map(|line| serde_json::from_str::<Line>(line).expect("a record"))
            .filter_map(record)
            .collect()
    })
}

/// The record of this name, of the variant `upstream_like`.
pub fn named(name: &str) -> &'static Record {
    of_variant(name, "upstream_like")
}

/// The record of this name and variant.
pub fn of_variant(name: &str, variant: &str) -> &'static Record {
    all()
        .iter()
        .find(|record| record.name == name && record.variant == variant)
        .unwrap_or_else(|| panic!("no record {name}[{variant}]"))
}

fn record(line: Line) -> Option<Record> {
    let (request, response) = (line.request?, line.response?);
    let chunks: Vec<Vec<u8>> = response
        .chunks
        .into_iter()
        .flatten()
        .map(|chunk| chunk.data.into_bytes())
        .collect();
    let body = match response.body {
        Some(body) => body.bytes(),
        None => chunks.concat(),
    };
    let bytes = bytes_of(&request);
    Some(Record {
        name: line.name,
        variant: line.variant,
        method: request.method,
        target: request.path,
        fields: request.headers.unwrap_or_default(),
        request: bytes,
        response: Answered {
            version: response.http_version,
            status: response.status,
            reason: response.reason,
            fields: response.headers,
            framing: response.framing,
            body,
            chunks,
        },
    })
}

fn bytes_of(request: &Request) -> Vec<u8> {
    if let Some(raw) = &request.raw {
        return raw.bytes();
    }
    let mut text = format!("{} {} {}\r\n", request.method, request.path, request.http_version);
    for (name, value) in request.headers.iter().flatten() {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    if let Some(body) = &request.body {
        bytes.extend(body.bytes());
    }
    bytes
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|known| *known == byte).expect("base64");
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn the_recording_has_all_its_exchanges() {
    assert_eq!(all().len(), 678);
    assert_eq!(base64("aGVsbG8sIHdvcmxkIQ=="), b"hello, world!");
    assert!(
        all()
            .iter()
            .all(|record| record.request.starts_with(record.method.as_bytes()))
    );
}

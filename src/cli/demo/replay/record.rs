//! One captured exchange, read from a line of JSON.
//!
//! A record holds the request and the response as they were on the wire: fields in their order and spelling, bodies
//! as bytes, the pieces of a stream with their times. [`super::matching`] finds the record that answers a request.

use serde::Deserialize;

/// Fields of a message, in wire order and spelling.
pub type Fields = Vec<(String, String)>;

/// One request and its response.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// Place in the capture.
    pub seq: u64,
    /// What the exchange shows.
    pub name: String,
    /// Which kind of server answered.
    pub variant: String,
    /// What was asked.
    pub request: CapturedRequest,
    /// What was answered.
    pub response: CapturedResponse,
    /// Milliseconds from the request to the first byte of the response.
    pub ttfb_ms: f64,
    /// Milliseconds from the request to the end of the response.
    pub total_ms: f64,
}

/// A request as it was sent.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct CapturedRequest {
    /// The method.
    pub method: String,
    /// The request target as sent: path and query, or an absolute URL.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub http_version: String,
    /// The fields.
    pub headers: Fields,
    /// The bytes after the head; for a chunked request with their chunk headers.
    pub body: Option<Content>,
}

/// A response as it was received.
#[derive(Debug, Clone, Deserialize)]
pub struct CapturedResponse {
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub http_version: String,
    /// The status.
    pub status: u16,
    /// The reason phrase.
    pub reason: String,
    /// The fields.
    pub headers: Fields,
    /// How the end of the body is told.
    pub framing: Framing,
    /// The body, unless it came in pieces.
    pub body: Option<Content>,
    /// The pieces of a stream.
    #[serde(default)]
    pub chunks: Vec<Chunk>,
}

/// How the end of a response body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// By `Content-Length`.
    ContentLength,
    /// By the last chunk.
    Chunked,
    /// There is no body.
    None,
    /// By closing the connection.
    UntilClose,
    /// Chunked; the client went away before the end came.
    AbortedByClient,
}

/// A piece of a stream.
#[derive(Debug, Clone, Deserialize)]
pub struct Chunk {
    /// Milliseconds from the request.
    pub t_ms: f64,
    /// What came.
    pub data: String,
}

/// Bytes of a body, as text or in base64; `length` is larger than the text where the capture cut it.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
pub struct Content {
    text: Option<String>,
    base64: Option<String>,
    length: Option<usize>,
}

/// The longest cut body that is padded.
const MOST_PADDING: usize = 16 << 20;

impl Content {
    /// The bytes. What the capture cut off is replaced by spaces, so that the length is the true one.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = match (&self.text, &self.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(encoded)) => decode_base64(encoded),
            (None, None) => Vec::new(),
        };
        if let Some(length) = self.length.filter(|length| *length > bytes.len()) {
            bytes.resize(length.min(MOST_PADDING), b' ');
        }
        bytes
    }
}

/// The records of `jsonl` that are exchanges of `variant` (of all variants where that is empty), in order.
/// Lines that are something else, notes for one, are left out.
pub fn records(jsonl: &str, variant: &str) -> Vec<Record> {
    jsonl
        .lines()
        .filter_map(|line| serde_json::from_str::<Record>(line).ok())
        .filter(|record| variant.is_empty() || record.variant == variant)
        .collect()
}

/// The bytes that `encoded` stands for, as RFC 4648 section 4; characters outside the alphabet are passed over.
fn decode_base64(encoded: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(encoded.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0);
    for character in encoded.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_with_and_without_padding() {
        assert_eq!(decode_base64("TWFu"), b"Man");
        assert_eq!(decode_base64("TWE="), b"Ma");
        assert_eq!(decode_base64("/+8="), [0xff, 0xef]);
        assert_eq!(decode_base64(""), b"");
    }

    #[test]
    fn a_cut_body_is_padded_to_its_true_length() {
        let content: Content =
            serde_json::from_str(r#"{"text": "ab", "truncated": true, "length": 5, "sha256": "x"}"#).unwrap();
        assert_eq!(content.bytes(), b"ab   ");
    }

    #[test]
    fn lines_that_are_no_exchange_are_left_out() {
        assert!(records("{\"seq\": 1, \"note\": \"x\"}\n\nnonsense", "").is_empty());
    }
}

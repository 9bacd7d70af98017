//! The question whether a gRPC server is well, and what its answer says: `grpc.health.v1.Health/Check`.
//!
//! Both messages are so small that their few bytes are written and read here (protocol buffers, in the framing of
//! gRPC): the name of a service in field 1 of the one, a number that is 1 for `SERVING` in field 1 of the other.
//! `probe` asks.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request, request};
use http_body::Frame;

use crate::types::{Body, grpc};

/// More of an answer is not looked at.
const MOST: usize = 64;
/// Before each message: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;
/// Field 1, a text.
const SERVICE: u8 = 0x0a;
/// Field 1, a number.
const STATUS: u8 = 0x08;
const SERVING: u8 = 1;

/// Asks how `service` is; the whole server if it is empty. Its name has at most 100 bytes.
pub(super) fn question(service: &str) -> (request::Builder, Body) {
    let request = Request::post("/grpc.health.v1.Health/Check")
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers");
    let mut message = Vec::new();
    if let Ok(length @ 1..128) = u8::try_from(service.len()) {
        message.extend([SERVICE, length]);
        message.extend(service.as_bytes());
    }
    let mut content = vec![0, 0, 0, 0, message.len() as u8];
    content.extend(message);
    (request, Body::Full(Bytes::from(content)))
}

/// What has come of an answer.
pub(super) struct Told {
    status: Option<grpc::Status>,
    message: Vec<u8>,
}

impl Told {
    /// An answer with this head.
    pub(super) fn of(head: &HeaderMap) -> Self {
        Self {
            status: grpc::Status::of(head),
            message: Vec::new(),
        }
    }

    pub(super) fn hear(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            let room = MOST - self.message.len();
            self.message.extend_from_slice(&data[..data.len().min(room)]);
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.status = grpc::Status::of(trailers).or(self.status);
        }
    }

    /// # Errors
    /// Why the server is not well.
    pub(super) fn verdict(&self) -> Result<(), Cow<'static, str>> {
        match self.status {
            Some(grpc::Status::OK) => {}
            Some(grpc::Status(code)) => return Err(format!("the answer has grpc-status {code}").into()),
            None => return Err("the answer has no grpc-status".into()),
        }
        match self.message.get(PREFIX..) {
            Some([STATUS, SERVING, ..]) => Ok(()),
            _ => Err("the answer is not SERVING".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn told(head: Option<&'static str>, content: &'static [u8], trailer: Option<&'static str>) -> bool {
        let fields = |status: Option<&'static str>| {
            let named = status.map(|status| (grpc::GRPC_STATUS, HeaderValue::from_static(status)));
            HeaderMap::from_iter(named)
        };
        let mut told = Told::of(&fields(head));
        for piece in content.chunks(3) {
            told.hear(&Frame::data(Bytes::from_static(piece)));
        }
        told.hear(&Frame::trailers(fields(trailer)));
        told.verdict().is_ok()
    }

    #[test]
    fn only_a_server_that_says_so_is_well() {
        assert!(told(None, &[0, 0, 0, 0, 2, 8, 1], Some("0")));
        assert!(!told(None, &[0, 0, 0, 0, 2, 8, 2], Some("0")));
        assert!(!told(None, &[0, 0, 0, 0, 0], Some("0")));
        assert!(!told(None, &[0, 0, 0, 0, 2, 8, 1], Some("14")));
        assert!(!told(None, &[0, 0, 0, 0, 2, 8, 1], None));
        assert!(!told(Some("12"), &[], None));
        assert!(!told(None, &[0; 200], Some("0")));
    }

    #[test]
    fn the_question_names_the_service() {
        let content = |service| match question(service).1 {
            Body::Full(bytes) => bytes,
            _ => Bytes::new(),
        };
        assert_eq!(content(""), [0, 0, 0, 0, 0].as_slice());
        assert_eq!(
            content("a.B"),
            [0, 0, 0, 0, 5, 10, 3, b'a', b'.', b'B'].as_slice()
        );
    }
}

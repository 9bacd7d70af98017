//! The replay answers as captured, serves only as many at once as it may, and counts who waits.

use std::collections::HashSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const CAPTURES: &str = include_str!("../../../../tests/fixtures/captures.jsonl");

fn at_once() -> ReplayOptions {
    ReplayOptions {
        time_scale: 0.0,
        idle_close: None,
        ..ReplayOptions::default()
    }
}

/// The request of `record`, to be the last of its connection where `last`.
fn request_bytes(record: &Record) -> Vec<u8> {
    let request = &record.request;
    let mut bytes = format!("{} {} {}\r\n", request.method, request.path, request.http_version);
    for (name, value) in &request.headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend(request.body.as_ref().map(Content::bytes).unwrap_or_default());
    bytes
}

/// The response of `record` as it goes over the wire.
fn response_bytes(record: &Record) -> Vec<u8> {
    let mut bytes = response_head(&record.response, None);
    bytes.extend(
        record
            .response
            .body
            .as_ref()
            .map(Content::bytes)
            .unwrap_or_default(),
    );
    for chunk in &record.response.chunks {
        match record.response.framing {
            Framing::UntilClose => bytes.extend(chunk.data.as_bytes()),
            _ => bytes.extend(format!("{:x}\r\n{}\r\n", chunk.data.len(), chunk.data).as_bytes()),
        }
    }
    if record.response.framing == Framing::Chunked {
        bytes.extend(b"0\r\n\r\n");
    }
    bytes
}

async fn read(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(records: &[Record], name: &str) -> Record {
    records
        .iter()
        .find(|record| record.name == name)
        .cloned()
        .unwrap()
}

#[test]
fn every_exchange_of_the_capture_is_read() {
    assert_eq!(records(CAPTURES, "").len(), 678);
    let variants: HashSet<_> = records(CAPTURES, "")
        .into_iter()
        .map(|record| record.variant)
        .collect();
    assert_eq!(variants.len(), 3);
}

#[tokio::test]
async fn captured_requests_get_the_captured_bytes() {
    let all = records(CAPTURES, "upstream_like");
    let replay = Replay::start(all.clone(), at_once()).await.unwrap();
    let mut compared = 0;
    for record in &all {
        let sent = request_bytes(record);
        // A request that a server refuses before it reads all of it is no matter of the replay.
        let strange = record.request.headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("expect") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if strange || sent.len() > 60_000 {
            continue;
        }
        let mut stream = TcpStream::connect(replay.address()).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        let expected = response_bytes(record);
        let received = read(&mut stream, expected.len()).await;
        assert_eq!(received, String::from_utf8_lossy(&expected), "{}", record.name);
        compared += 1;
    }
    assert!(compared > 300, "{compared}");
}

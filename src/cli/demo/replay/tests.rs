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

/// The request of `record` as it goes over the wire.
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
    assert_eq!(records(CAPTURES, "").len(), 676);
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

#[tokio::test]
async fn a_stream_comes_in_order_and_the_connection_goes_on() {
    let all = records(CAPTURES, "upstream_like");
    let stream_record = find(&all, "v1_chat_streaming__echo");
    let after = find(&all, "v1_info__echo_chat");
    let replay = Replay::start(vec![stream_record.clone(), after.clone()], at_once())
        .await
        .unwrap();
    let mut stream = TcpStream::connect(replay.address()).await.unwrap();
    // Both at once: the second waits unread until the first is answered.
    let sent = [request_bytes(&stream_record), request_bytes(&after)].concat();
    stream.write_all(&sent).await.unwrap();
    let expected = [response_bytes(&stream_record), response_bytes(&after)].concat();
    let received = read(&mut stream, expected.len()).await;
    assert_eq!(received, String::from_utf8_lossy(&expected));
}

#[tokio::test]
async fn an_answer_without_length_ends_with_the_connection() {
    let record = find(&records(CAPTURES, "upstream_like"), "conn_http10_stream");
    let replay = Replay::start(vec![record.clone()], at_once()).await.unwrap();
    let mut stream = TcpStream::connect(replay.address()).await.unwrap();
    stream.write_all(&request_bytes(&record)).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, response_bytes(&record));
}

#[tokio::test]
async fn a_stream_that_its_client_left_stays_open_until_the_client_goes() {
    let record = find(&records(CAPTURES, "upstream_like"), "abort_llm_stream");
    let replay = Replay::start(vec![record.clone()], at_once()).await.unwrap();
    let mut stream = TcpStream::connect(replay.address()).await.unwrap();
    stream.write_all(&request_bytes(&record)).await.unwrap();
    read(&mut stream, response_bytes(&record).len()).await;
    assert_eq!(replay.counters().in_flight, 1);
    assert_eq!(replay.counters().aborted, 0);
    drop(stream);
    while replay.counters().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(replay.counters().aborted, 1);
}

#[tokio::test]
async fn requests_beyond_the_slots_wait_and_are_counted() {
    let all = records(CAPTURES, "upstream_like");
    // Holds its slot until its client goes: a gate that the test opens.
    let holder = find(&all, "abort_llm_stream");
    let asked = find(&all, "v1_info__echo_chat");
    let options = ReplayOptions {
        slots: 2,
        ..at_once()
    };
    let replay = Replay::start(vec![holder.clone(), asked.clone()], options)
        .await
        .unwrap();
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(replay.address()).await.unwrap();
        stream.write_all(&request_bytes(&holder)).await.unwrap();
        read(&mut stream, response_bytes(&holder).len()).await;
        holders.push(stream);
    }
    let mut waiting = Vec::new();
    for count in 1..=3 {
        let mut stream = TcpStream::connect(replay.address()).await.unwrap();
        stream.write_all(&request_bytes(&asked)).await.unwrap();
        waiting.push(stream);
        while replay.counters().backlog < count {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(replay.counters().in_flight, 2);
    holders.pop();
    for mut stream in waiting {
        assert!(read(&mut stream, 15).await.starts_with("HTTP/1.1 200"));
    }
    let counters = replay.counters();
    assert_eq!(
        (counters.backlog, counters.longest_backlog, counters.requests),
        (0, 3, 5)
    );
    assert_eq!(counters.by_target[&("GET".into(), "/v1/info".into())], 3);
}

#[tokio::test(start_paused = true)]
async fn answers_take_as_long_as_captured_and_idle_connections_are_closed() {
    let record = find(
        &records(CAPTURES, "upstream_like"),
        "v1_chat_streaming__basic_chat",
    );
    let options = ReplayOptions {
        idle_close: Some(Duration::from_secs(2)),
        ..ReplayOptions::default()
    };
    let replay = Replay::start(vec![record.clone()], options).await.unwrap();
    let mut stream = TcpStream::connect(replay.address()).await.unwrap();
    let start = Clock::System.now().monotonic;
    stream.write_all(&request_bytes(&record)).await.unwrap();
    let head = response_head(&record.response, None);
    read(&mut stream, head.len()).await;
    assert!(start.elapsed().as_secs_f64() * 1000.0 >= record.ttfb_ms);
    read(&mut stream, response_bytes(&record).len() - head.len()).await;
    assert!(start.elapsed().as_secs_f64() * 1000.0 >= record.total_ms);
    let answered = Clock::System.now().monotonic;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert!(answered.elapsed() >= Duration::from_millis(1990));
}

#[tokio::test]
async fn what_was_never_captured_is_refused_in_the_shape_of_dify() {
    let asked = find(&records(CAPTURES, "upstream_like"), "v1_info__echo_chat");
    let replay = Replay::start(vec![asked.clone()], at_once()).await.unwrap();
    let key = joined_key(&asked);
    for (request, status) in [
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), "200"),
        ("GET /console/api/apps HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("GET /v1/info HTTP/1.1\r\n\r\n".to_owned(), "401"),
        (
            "GET /v1/info HTTP/1.1\r\nAuthorization: Bearer app-x\r\n\r\n".to_owned(),
            "401",
        ),
        (
            format!("GET /v1/nope HTTP/1.1\r\nAuthorization: {key}\r\n\r\n"),
            "404",
        ),
        (
            format!("GET /v1/info HTTP/1.1\r\nAuthorization: {key}\r\n\r\n"),
            "200",
        ),
    ] {
        let mut stream = TcpStream::connect(replay.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(
            read(&mut stream, 12).await,
            format!("HTTP/1.1 {status}"),
            "{request}"
        );
    }
}

fn joined_key(record: &Record) -> String {
    message::joined(&record.request.headers, "authorization").unwrap()
}

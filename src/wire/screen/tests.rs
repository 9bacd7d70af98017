//! Tests of the pure core: what passes, what is refused, and that nothing depends on how bytes arrive.

use std::sync::{Arc, Mutex};

use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::framer::{Fault, Framer};
use super::{HeadLimits, LimitsConfig};
use crate::types::FailureKind::{self, HeadersTooLarge, Malformed, UnsupportedMethod, UriTooLong};
use crate::types::units::Size;

fn limits() -> HeadLimits {
    HeadLimits::new(&LimitsConfig {
        header_count: 8,
        header_bytes: Size(256),
        uri_bytes: Size(64),
        ..LimitsConfig::default()
    })
}

/// What becomes of a stream: bytes and heads passed, and the fault, if any.
type Fate = (usize, u64, Option<(bool, FailureKind, String)>);

/// Feeds `pieces` as the screen does. Also checks that what is kept stays within the limits.
fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Fate {
    let mut framer = Framer::new(limits());
    let (mut kept, mut passed): (Vec<u8>, usize) = (Vec::new(), 0);
    for piece in pieces {
        kept.extend_from_slice(piece);
        let scan = framer.scan(&kept);
        passed += scan.pass;
        kept.drain(..scan.pass);
        if let Some(fault) = scan.fault {
            let (is_head, failure) = match fault {
                Fault::Head(failure) => (true, failure),
                Fault::Body(failure) => (false, failure),
            };
            return (
                passed,
                framer.heads(),
                Some((is_head, failure.kind, failure.detail.into_owned())),
            );
        }
        if !framer.is_undecided() {
            assert!(kept.len() <= 64 + 64 + 256 + 4, "{} bytes kept", kept.len());
        }
    }
    (passed, framer.heads(), None)
}

fn head(lines: &[&str]) -> String {
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

fn get(fields: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n")
}

fn refused() -> Vec<(String, FailureKind, &'static str)> {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(64));
    vec![
        // Framing that can be read in two ways.
        (
            get("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            Malformed,
            "exclude",
        ),
        (
            get("Transfer-Encoding: chunked\r\nContent-Length: 5"),
            Malformed,
            "exclude",
        ),
        (
            get("Content-Length: 5\r\nContent-Length: 5"),
            Malformed,
            "`Content-Length` is repeated",
        ),
        (
            get("Content-Length: 5\r\nContent-Length: 6"),
            Malformed,
            "`Content-Length` is repeated",
        ),
        (get("Content-Length: 5, 5"), Malformed, "one plain number"),
        (get("Content-Length: +5"), Malformed, "one plain number"),
        (get("Content-Length: -1"), Malformed, "one plain number"),
        (get("Content-Length: 0x5"), Malformed, "one plain number"),
        (get("Content-Length: "), Malformed, "one plain number"),
        (
            get("Content-Length: 99999999999999999999"),
            Malformed,
            "one plain number",
        ),
        (get("Content-Length: 5 5"), Malformed, "one plain number"),
        (
            get("Transfer-Encoding: gzip"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: gzip, chunked"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: chunked, chunked"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: chunked, identity"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: xchunked"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: \"chunked\""),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: chunked;a=b"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            Malformed,
            "repeated",
        ),
        (
            get("Transfer-Encoding:"),
            Malformed,
            "something else than `chunked`",
        ),
        (
            head(&["POST /a HTTP/1.0", "Host: h", "Transfer-Encoding: chunked"]),
            Malformed,
            "does not exist in HTTP/1.0",
        ),
        // Host.
        (head(&["GET /a HTTP/1.1"]), Malformed, "needs a `Host`"),
        (get("Host: h"), Malformed, "`Host` is repeated"),
        (get("hOST: other"), Malformed, "`Host` is repeated"),
        (
            head(&["GET /a HTTP/1.1", "Host: a b"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET /a HTTP/1.1", "Host: a@b"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET /a HTTP/1.1", "Host: a/b"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET /a HTTP/1.1", "Host: a,b"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET /a HTTP/1.1", "Host: a:80:90"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET /a HTTP/1.1", "Host: [::1"]),
            Malformed,
            "`Host` is not",
        ),
        (
            head(&["GET http://a/ HTTP/1.1", "Host: b"]),
            Malformed,
            "`Host` differs",
        ),
        (
            head(&["GET http://a/ HTTP/1.1", "Host:"]),
            Malformed,
            "`Host` differs",
        ),
        (head(&["GET http://a/ HTTP/1.1"]), Malformed, "needs a `Host`"),
        (
            head(&["GET http://u@a/ HTTP/1.1", "Host: u@a"]),
            Malformed,
            "target is not valid",
        ),
        // Lines.
        (get("A: b\r\n folded: c"), Malformed, "folded"),
        (get("A: b\r\n\tfolded: c"), Malformed, "folded"),
        (head(&["GET /a HTTP/1.1", " Host: h"]), Malformed, "folded"),
        (get("A : b"), Malformed, "whitespace stands between"),
        (get("A\t: b"), Malformed, "whitespace stands between"),
        (get("A b: c"), Malformed, "not allowed"),
        (get("A\0b: c"), Malformed, "not allowed"),
        (get("A(b): c"), Malformed, "not allowed"),
        (get(": c"), Malformed, "not allowed"),
        (get("A"), Malformed, "no colon"),
        (get("A: b\0c"), Malformed, "value of `A` has a control character"),
        (
            get("A: b\x01c"),
            Malformed,
            "value of `A` has a control character",
        ),
        (
            get("A: b\x7fc"),
            Malformed,
            "value of `A` has a control character",
        ),
        (get("A: b\rc"), Malformed, "value of `A` has a control character"),
        (get("A: b\r"), Malformed, "value of `A` has a control character"),
        (get("A: b\nC: d"), Malformed, "without a carriage return"),
        (
            "GET /a HTTP/1.1\nHost: h\n\n".into(),
            Malformed,
            "without a carriage return",
        ),
        (
            "\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n".into(),
            Malformed,
            "without a carriage return",
        ),
        (
            " GET /a HTTP/1.1\r\nHost: h\r\n\r\n".into(),
            Malformed,
            "does not begin with a method",
        ),
        ("\0".into(), Malformed, "does not begin with a method"),
        ("\r\n\r\n\r\nGET".into(), Malformed, "too many empty lines"),
        // The request line.
        (head(&["GET /a", "Host: h"]), Malformed, "method target version"),
        (
            head(&["GET  /a HTTP/1.1", "Host: h"]),
            Malformed,
            "method target version",
        ),
        (
            head(&["GET /a b HTTP/1.1", "Host: h"]),
            Malformed,
            "method target version",
        ),
        (
            head(&["GET /a HTTP/1.1 ", "Host: h"]),
            Malformed,
            "method target version",
        ),
        (
            head(&["GET\t/a HTTP/1.1", "Host: h"]),
            Malformed,
            "method target version",
        ),
        (
            head(&["GET /a\r HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (
            head(&["GET /a\0 HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (
            head(&["GET /a#b HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (
            head(&["GET /a?b=<c HTTP/1.1", "Host: h"]),
            Malformed,
            "has to be written as `%3C`",
        ),
        (
            head(&["GET http://h/a?b=\"c HTTP/1.1", "Host: h"]),
            Malformed,
            "has to be written as `%22`",
        ),
        (
            head(&["GET a HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (
            head(&["GET * HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (
            head(&["GET ftp://h/ HTTP/1.1", "Host: h"]),
            Malformed,
            "target is not valid",
        ),
        (head(&["G(T /a HTTP/1.1", "Host: h"]), Malformed, "not a method"),
        (head(&["GET /a HTTP/2.0", "Host: h"]), Malformed, "HTTP version"),
        (head(&["GET /a HTTP/1.2", "Host: h"]), Malformed, "HTTP version"),
        (head(&["GET /a http/1.1", "Host: h"]), Malformed, "HTTP version"),
        (head(&["GET /a HTTP/0.9", "Host: h"]), Malformed, "HTTP version"),
        (
            head(&["CONNECT h:80 HTTP/1.1", "Host: h:80"]),
            UnsupportedMethod,
            "CONNECT",
        ),
        (
            head(&["TRACE /a HTTP/1.1", "Host: h"]),
            UnsupportedMethod,
            "TRACE",
        ),
        // Limits.
        (long_target, UriTooLong, "longer than 64 bytes"),
        ("G".repeat(200), UriTooLong, "longer than 64 bytes"),
        (
            get(&format!("A: {}", "b".repeat(256))),
            HeadersTooLarge,
            "longer than 256 bytes",
        ),
        (
            get(&["A: b"; 8].join("\r\n")),
            HeadersTooLarge,
            "more than 8 header fields",
        ),
    ]
}

fn good() -> Vec<(String, u64)> {
    vec![
        (get("Accept: */*"), 1),
        (format!("\r\n\r\n{}", get("A: b")), 1),
        (head(&["GET /a HTTP/1.0"]), 1),
        (head(&["GET /a HTTP/1.1", "Host:"]), 1),
        (head(&["GET /a HTTP/1.1", "Host:\t [::1]:8080 \t"]), 1),
        (head(&["GET HTTP://A.b:80/x?y HTTP/1.1", "Host: a.B:80"]), 1),
        (head(&["GET https://a?x HTTP/1.1", "Host: a"]), 1),
        (head(&["OPTIONS * HTTP/1.1", "Host: h"]), 1),
        (head(&["PROPFIND /ä?ö={}|^ HTTP/1.1", "Host: h"]), 1),
        (get("A:"), 1),
        (get("A: caf\u{e9}\t;x"), 1),
        (format!("{}hello{}", get("Content-Length: 5"), get("A: b")), 2),
        (format!("{}{}", get("Content-Length: 0"), get("A: b")), 2),
        (
            format!(
                "{}5;x=\"y\"\r\nhello\r\n0A\r\n0123456789\r\n0\r\nT: v\r\n\r\n{}",
                get("Transfer-Encoding: Chunked"),
                get("A: b")
            ),
            2,
        ),
        // What follows an upgrade is not looked at until that is decided.
        (get("Upgrade: websocket\r\nConnection: upgrade"), 1),
        (
            format!("{}hello", get("Upgrade: websocket\r\nContent-Length: 5")),
            1,
        ),
    ]
}

fn bad_chunks() -> Vec<(&'static str, FailureKind, &'static str)> {
    vec![
        ("g\r\n", Malformed, "hexadecimal"),
        ("\r\n", Malformed, "hexadecimal"),
        ("-1\r\n", Malformed, "hexadecimal"),
        ("0x1\r\n", Malformed, "hexadecimal"),
        (" 1\r\n", Malformed, "hexadecimal"),
        ("1 \r\n", Malformed, "hexadecimal"),
        ("1\n", Malformed, "hexadecimal"),
        ("1234567890abcdef\r\n", Malformed, "too large"),
        ("1\rx", Malformed, "stands alone"),
        ("1;a\n", Malformed, "control character"),
        ("1;a\rb", Malformed, "stands alone"),
        ("1;a\0", Malformed, "control character"),
        ("1\r\nabc", Malformed, "longer than its size"),
        ("1\r\na\n", Malformed, "longer than its size"),
        ("1\r\na\rx", Malformed, "longer than its size"),
        ("0\r\n: v\r\n", Malformed, "trailer"),
        ("0\r\nA : v\r\n", Malformed, "trailer"),
        ("0\r\nA: v\n", Malformed, "trailer"),
        ("0\r\n folded\r\n", Malformed, "trailer"),
        ("0\r\nA: v\rx", Malformed, "stands alone"),
        ("0\r\n\rx", Malformed, "stands alone"),
        (
            "0\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\n",
            HeadersTooLarge,
            "too many trailer",
        ),
    ]
}

#[test]
fn what_can_be_read_in_two_ways_or_goes_beyond_a_limit_is_refused_by_name() {
    for (text, kind, part) in refused() {
        let (passed, heads, fault) = feed([text.as_bytes()]);
        let Some((true, found, detail)) = fault else {
            panic!("{text:?} passed");
        };
        assert_eq!((passed, heads, found), (0, 0, kind), "{text:?}: {detail}");
        assert!(detail.contains(part), "{text:?}: {detail}");
    }
}

#[test]
fn good_requests_pass_to_the_last_byte() {
    for (text, heads) in good() {
        assert_eq!(feed([text.as_bytes()]), (text.len(), heads, None), "{text:?}");
    }
}

#[test]
fn a_chunked_body_passes_up_to_its_first_wrong_byte() {
    let long_extension = format!("1;{}\r\n", "x".repeat(5000));
    let long_trailer = format!("0\r\nA: {}\r\n", "x".repeat(300));
    let more = [
        (long_extension.as_str(), Malformed, "too long"),
        (long_trailer.as_str(), HeadersTooLarge, "too long"),
    ];
    for (chunks, kind, part) in bad_chunks().into_iter().chain(more) {
        let start = get("Transfer-Encoding: chunked");
        let text = format!("{start}{chunks}");
        let (passed, heads, fault) = feed([text.as_bytes()]);
        let Some((false, found, detail)) = fault else {
            panic!("{chunks:?} passed");
        };
        assert!(passed >= start.len() && passed < text.len(), "{chunks:?}");
        assert_eq!((heads, found), (1, kind), "{chunks:?}: {detail}");
        assert!(detail.contains(part), "{chunks:?}: {detail}");
    }
}

#[test]
fn it_does_not_matter_where_the_bytes_are_split() {
    let start = get("Transfer-Encoding: chunked");
    let texts = refused()
        .into_iter()
        .map(|(text, ..)| text)
        .chain(good().into_iter().map(|(text, _)| text))
        .chain(
            bad_chunks()
                .into_iter()
                .map(|(text, ..)| format!("{start}{text}")),
        )
        // A bad head after a good one must not take that one along.
        .chain(
            refused()
                .into_iter()
                .map(|(text, ..)| format!("{}{text}", get("A: b"))),
        );
    for text in texts {
        let bytes = text.as_bytes();
        let whole = feed([bytes]);
        for at in 0..=bytes.len() {
            assert_eq!(feed([&bytes[..at], &bytes[at..]]), whole, "{text:?} at {at}");
        }
        assert_eq!(feed(bytes.chunks(1)), whole, "{text:?} byte by byte");
    }
}

#[test]
fn after_an_upgrade_that_was_not_agreed_to_the_next_request_is_judged() {
    let mut framer = Framer::new(limits());
    let first = get("Upgrade: websocket");
    let text = format!("{first}{}", get("A : b"));
    let scan = framer.scan(text.as_bytes());
    assert!(framer.is_undecided() && scan.pass == first.len() && scan.fault.is_none());
    framer.resume();
    let scan = framer.scan(&text.as_bytes()[scan.pass..]);
    assert!(scan.pass == 0 && matches!(scan.fault, Some(Fault::Head(_))));
}

/// What hyper makes of a head: method, target and fields, or nothing.
type Read = Option<(String, String, Vec<(String, Vec<u8>)>)>;

fn as_hyper_reads(head: &[u8]) -> Read {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seen = Arc::new(Mutex::new(None));
    let note = seen.clone();
    runtime.block_on(async move {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let fields = request
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect();
            let target = request.uri().to_string();
            *note.lock().unwrap() = Some((request.method().to_string(), target, fields));
            async { Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new())) }
        });
        client.write_all(head).await.unwrap();
        client.shutdown().await.unwrap();
        let _ = hyper::server::conn::http1::Builder::new()
            .header_read_timeout(None)
            .half_close(true)
            .serve_connection(TokioIo::new(server), service)
            .await;
    });
    seen.lock().unwrap().take()
}

fn as_written(head: &[u8]) -> Read {
    let lines: Vec<&[u8]> = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
        .collect();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let words: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    let mut fields: Vec<_> = lines[1..]
        .iter()
        .map(|line| {
            let colon = line.iter().position(|byte| *byte == b':').unwrap();
            let name = text(&line[..colon]).to_ascii_lowercase();
            (name, line[colon + 1..].trim_ascii().to_vec())
        })
        .collect();
    fields.sort();
    Some((text(words[0]), text(words[1]), fields))
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}:[ \t]{0,2}[ -~\t]{0,24}[ \t]{0,2}",
        Just("Content-Length: 0".into()),
        Just("Transfer-Encoding: chunked".into()),
        Just("Expect: 100-continue".into()),
        Just("Connection: close, x".into()),
        "[ -~\t\r\n\0]{0,16}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_head_passes_hyper_reads_the_same_from_it(
        method in "(GET|POST|[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8})",
        target in r#"(/[!-~]{0,24}|/[a-z/;:@.%?=&]{0,24}|/é?ü|\*)"#,
        fields in prop::collection::vec(field(), 0..5),
        noise in prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n").into_bytes();
        for field in &fields {
            text.extend_from_slice(field.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        if let Some((at, byte)) = noise {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let mut framer = Framer::new(limits());
        let scan = framer.scan(&text);
        if framer.heads() == 1 && scan.fault.is_none() {
            let head = &text[..scan.pass];
            let read = as_hyper_reads(head).map(|(method, target, mut fields)| {
                fields.sort();
                (method, target, fields)
            });
            prop_assert_eq!(read, as_written(head), "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_pile_up(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        feed(pieces.iter().map(Vec::as_slice));
    }

    #[test]
    fn bytes_that_look_like_http_neither_panic_nor_depend_on_splits(
        text in "(GET /|HTTP/1.1|\r\n|Host: h|Content-Length: |Transfer-Encoding: chunked|:|;| |[0-9a-f]|\n|\r|x){0,60}",
        size in 1usize..7,
    ) {
        prop_assert_eq!(feed(text.as_bytes().chunks(size)), feed([text.as_bytes()]));
    }
}

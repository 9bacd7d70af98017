//! What the benches have in common: a configuration, the typical request, and an origin that answers it.
//!
//! The origin is a thread with blocking sockets: it is asked once or a few times, so that everything after is a hit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use dify_edge::config::{AccessLog, Config, ReplicaConfig, UpstreamConfig};
use dify_edge::types::units::Span;
use http::Request;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use http::request::Parts;

/// The head of a read of the service API as a client library sends it.
pub(crate) fn parts() -> Parts {
    let request = Request::get("/v1/parameters?user=abc-123")
        .header(HOST, "dify.example.org")
        .header(AUTHORIZATION, "Bearer app-GHrAtfIBFSM66PQyLXD0FfZE")
        .header(USER_AGENT, "python-requests/2.32.3")
        .header(ACCEPT_ENCODING, "gzip, deflate")
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "keep-alive")
        .body(())
        .expect("a request");
    request.into_parts().0
}

/// Bytes of the origin's answer.
pub(crate) const BODY_BYTES: usize = 1024;

/// The fields that dify-api gives with an answer, but its length.
pub(crate) const FIELDS: [(&str, &str); 7] = [
    ("Server", "gunicorn"),
    ("Date", "Sun, 22 Nov 2026 16:12:34 GMT"),
    ("Content-Type", "application/json"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "X-Env, X-Trace-Id, X-Version"),
    ("X-Version", "1.12.1"),
    ("X-Env", "PRODUCTION"),
];

/// Before this origin; answers stay fresh while a bench runs, and nothing happens beside the requests.
pub(crate) fn config(origin: SocketAddr) -> Config {
    let mut config = Config::default();
    config.listen[0].address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.admin.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.log.access = AccessLog::Off;
    config.cache.classes.metadata.ttl = Span::secs(3600);
    let mut api = UpstreamConfig {
        replicas: vec![ReplicaConfig {
            url: format!("http://{origin}"),
            ..ReplicaConfig::default()
        }],
        ..UpstreamConfig::default()
    };
    api.health_check.interval = Span::secs(3600);
    config.upstreams.insert("api".into(), api);
    config
}

/// Starts an origin that gives every request the same answer.
pub(crate) fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) {
    let mut answer = String::from("HTTP/1.1 200 OK\r\n");
    for (name, value) in FIELDS {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str(&format!("Content-Length: {BODY_BYTES}\r\n\r\n"));
    answer.push_str(&"x".repeat(BODY_BYTES));
    while read_head(&mut stream) && stream.write_all(answer.as_bytes()).is_ok() {}
}

/// Reads to the end of one head; false when the peer has gone.
fn read_head(stream: &mut TcpStream) -> bool {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
            _ => return false,
        }
    }
    true
}

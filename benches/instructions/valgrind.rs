//! Runs this program under callgrind and reads how many instructions it took.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support;

/// The request of [`support::parts`] as bytes, with a number of its own or without.
fn request(number: Option<u64>) -> String {
    let id = number.map_or(String::new(), |number| format!("X-Request-Id: {number:08}\r\n"));
    format!(
        "GET /v1/parameters?user=abc-123 HTTP/1.1\r\nHost: dify.example.org\r\n\
         Authorization: Bearer app-GHrAtfIBFSM66PQyLXD0FfZE\r\nUser-Agent: python-requests/2.32.3\r\n\
         Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n{id}\r\n"
    )
}

/// Instructions of a run of the stack alone.
pub(crate) fn stack_hit(program: &Path, origin: SocketAddr, hits: u64) -> u64 {
    let run = Run::start(program, &["stack_hit", &origin.to_string(), &hits.to_string()]);
    run.end()
}

/// Instructions of a run of the whole proxy, asked over one connection. `repeated`: with the same bytes each time,
/// so that it answers before it parses; else with an id of its own in each request.
pub(crate) fn wire_hit(program: &Path, origin: SocketAddr, hits: u64, repeated: bool) -> u64 {
    let mut run = Run::start(program, &["wire_hit", &origin.to_string()]);
    let mut line = String::new();
    let mut output = BufReader::new(run.child.stdout.take().expect("its output"));
    output.read_line(&mut line).expect("its address");
    let mut client = TcpStream::connect(line.trim()).expect("a connection");
    client.set_nodelay(true).expect("a socket option");
    let mut exchange = |number: u64| exchange(&mut client, &request((!repeated).then_some(number)));
    assert!(!exchange(0).contains("; hit;"), "nothing is stored yet");
    for number in 1..=hits {
        assert!(exchange(number).contains("; hit;"), "not a hit");
    }
    drop(client);
    run.end()
}

/// One request and its answer; the answer's head.
fn exchange(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).expect("the request is sent");
    let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let read = client.read(&mut buffer).expect("an answer");
        assert!(read > 0, "the connection was closed");
        answer.extend_from_slice(&buffer[..read]);
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end.filter(|end| answer.len() >= end + 4 + support::BODY_BYTES) {
            answer.truncate(end);
            return String::from_utf8(answer).expect("text");
        }
    }
}

/// A run under way.
struct Run {
    child: Child,
    profile: PathBuf,
}

impl Run {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let name = format!("dify-edge-callgrind-{}.out", std::process::id());
        let profile = std::env::temp_dir().join(name);
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("valgrind starts");
        Self { child, profile }
    }

    /// Lets it finish; the instructions of all its threads.
    fn end(mut self) -> u64 {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("its status");
        assert!(status.success(), "the measured program failed: {status}");
        let text = std::fs::read_to_string(&self.profile).expect("callgrind's figures");
        let _ = std::fs::remove_file(&self.profile);
        text.lines()
            .find_map(|line| line.strip_prefix("totals:"))
            .and_then(|figure| figure.trim().parse().ok())
            .expect("a total")
    }
}

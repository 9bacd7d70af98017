//! Puts load on a server: wrk for HTTP/1.1, h2load for HTTP/2, and one plain request to see that it answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::rows::Row;
use crate::server::Server;

pub(crate) const HOST: &str = "dify.example";
pub(crate) const AUTHORIZATION: &str = "Bearer app-GHrAtfIBFSM66PQyLXD0FfZE";

/// What a run of load came to.
pub(crate) struct Summary {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    /// 99th percentile of the latency in milliseconds; 0 when the load does not tell.
    pub(crate) p99: f64,
}

/// Asks once; an error unless the answer is 200 with a body of the right length.
pub(crate) fn check(server: &Server, row: &Row) -> Result<(), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.http))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let target = row.target();
        write!(
            stream,
            "GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {AUTHORIZATION}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no whole head")?;
    if head.starts_with("HTTP/1.1 200") && body.len() == row.size {
        return Ok(());
    }
    let line = head.lines().next().unwrap_or_default();
    Err(format!(
        "{line:?} with {} bytes in place of {}",
        body.len(),
        row.size
    ))
}

/// Loads `server` for about `seconds`.
pub(crate) fn run(server: &Server, row: &Row, seconds: u64, folder: &Path) -> Result<Summary, String> {
    let connections = row.connections.to_string();
    let authorization = format!("Authorization: {AUTHORIZATION}");
    let mut command;
    if row.h2 {
        command = Command::new("h2load");
        command.args(["-t1", "-m16", "-c", &connections, "-D", &seconds.to_string()]);
        command.args(["-H", &format!(":authority: {HOST}"), "-H", &authorization]);
        command.arg(format!("http://127.0.0.1:{}{}", server.h2, row.target()));
    } else {
        command = Command::new("wrk");
        command.args(["-t1", "-c", &connections, "-d", &format!("{seconds}s"), "-s"]);
        command.arg(folder.join("done.lua"));
        command.args(["-H", &format!("Host: {HOST}"), "-H", &authorization]);
        let (scheme, port) = if row.tls {
            ("https", server.tls)
        } else {
            ("http", server.http)
        };
        command.arg(format!("{scheme}://127.0.0.1:{port}{}", row.target()));
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = if row.h2 {
        of_h2load(&text, seconds)
    } else {
        of_wrk(&text)
    };
    let (summary, errors) = summary.ok_or_else(|| format!("no summary in {text:?}"))?;
    if errors > 0.0 || summary.requests < 1.0 {
        return Err(format!("{errors} errors in {} requests", summary.requests));
    }
    Ok(summary)
}

fn of_wrk(text: &str) -> Option<(Summary, f64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("SUMMARY "))?;
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let requests = value["requests"].as_f64()?;
    let seconds = value["micros"].as_f64()? / 1e6;
    let p99 = value["p99"].as_f64()? / 1e3;
    Some((
        Summary {
            requests,
            seconds,
            p99,
        },
        value["errors"].as_f64()?,
    ))
}

fn of_h2load(text: &str, seconds: u64) -> Option<(Summary, f64)> {
    let line = text.lines().find(|line| line.starts_with("requests: "))?;
    let number = |word: &str| -> Option<f64> {
        let part = line.split(',').find(|part| part.ends_with(word))?;
        part.trim_start_matches("requests:")
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let summary = Summary {
        requests: number(" succeeded")?,
        seconds: seconds as f64,
        p99: 0.0,
    };
    Some((
        summary,
        number(" failed")? + number(" errored")? + number(" timeout")?,
    ))
}

/// Has `server` store so many answers.
pub(crate) fn fill(server: &Server, answers: usize) -> std::io::Result<()> {
    const CLIENTS: usize = 8;
    let ask = |client: usize| -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.http))?;
        stream.set_nodelay(true)?;
        let mut piece = [0; 16 << 10];
        for number in (client..answers).step_by(CLIENTS) {
            let target = format!("/v1/parameters?size=1024&entry={number}");
            let head =
                format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {AUTHORIZATION}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            let mut answer = 0;
            while answer < 1024 + 64 {
                answer += stream.read(&mut piece)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || ask(client)))
            .collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(result) => result,
            Err(_) => Err(std::io::Error::other("a client broke")),
        })
    })
}

/// Loads `server` with requests for stored answers at random.
pub(crate) fn at_random(
    server: &Server,
    answers: usize,
    connections: usize,
    seconds: u64,
    folder: &Path,
) -> Result<Summary, String> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        "-c",
        &connections.to_string(),
        "-d",
        &format!("{seconds}s"),
        "-s",
    ]);
    command.arg(folder.join("entries.lua")).env("PEERS_DIR", folder);
    command.args([
        "-H",
        &format!("Host: {HOST}"),
        "-H",
        &format!("Authorization: {AUTHORIZATION}"),
    ]);
    command.args([
        &format!("http://127.0.0.1:{}", server.http),
        "--",
        &answers.to_string(),
    ]);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (summary, errors) = of_wrk(&text).ok_or_else(|| format!("no summary in {text:?}"))?;
    if errors > 0.0 {
        return Err(format!("{errors} errors"));
    }
    Ok(summary)
}

/// Opens so many connections that make one request each, from some addresses because each has a limited number of
/// ports, and rests.
pub(crate) fn open(server: &Server, row: &Row, connections: usize) -> std::io::Result<Vec<TcpStream>> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {AUTHORIZATION}\r\n\r\n",
        row.target()
    );
    let mut open = Vec::with_capacity(connections);
    for number in 0..connections {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let address = std::net::SocketAddr::from(([127, 0, 1 + (number % 4) as u8, 1], 0));
        socket.bind(&address.into())?;
        socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], server.http)).into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let (mut answer, mut piece) = (0, [0; 16 << 10]);
        while answer < row.size {
            match stream.read(&mut piece)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => answer += read,
            }
        }
        open.push(stream);
    }
    Ok(open)
}

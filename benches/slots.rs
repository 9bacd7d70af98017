//! Pages beside long streams before a server of ten connections: straight, through nginx as Dify ships it, and through
//! dify-edge.
//!
//! `cargo bench --bench slots` prints the table of README.md in this folder. The server is like a stock dify-api
//! container: it accepts ten connections, and what is too much waits in the kernel. nginx must be installed. What is
//! compared takes its turn in one run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Connections that the server accepts at once.
const SLOTS: usize = 10;
/// How long it thinks about a page.
const PAGE: Duration = Duration::from_millis(50);
/// Clients that hold streams.
const STREAMS: usize = 40;
/// A page that takes longer is given up and counts as this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pages by which a percentile is told.
const PAGES: usize = 200;
/// Clients that come at once.
const RUSH: usize = 200;

/// Compare what waits where.
#[derive(Parser)]
struct Args {
    /// How often each way is measured; the medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The program that is measured.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_dify-edge"))]
    edge: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one way showed in one round.
#[derive(Clone, Copy, Default)]
struct Figures {
    p50: Duration,
    p99: Duration,
    loaded_p99: Duration,
    /// Pages that were given up beside the streams.
    given_up: usize,
    backlog: usize,
    failed: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &Args) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slots");
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let mut rows: [(&str, Vec<Figures>); 3] =
        [("straight", vec![]), ("nginx", vec![]), ("dify-edge", vec![])];
    for round in 1..=args.rounds {
        for (name, figures) in &mut rows {
            eprintln!("round {round} of {}: {name}", args.rounds);
            let origin = Origin::start().await?;
            let (address, _server) = match *name {
                "straight" => (origin.address, None),
                name => {
                    let (address, server) = Server::start(name, args, &folder, origin.address)?;
                    (address, Some(server))
                }
            };
            figures.push(round_of(address, &origin).await?);
        }
    }
    println!(
        "| through | p50 | p99 | p99 beside {STREAMS} streams | to unloaded | given up | backlog at {RUSH} clients | failed |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, figures) in &rows {
        let time = |of: fn(&Figures) -> Duration| median(figures, of).as_secs_f64() * 1e3;
        let count = |of: fn(&Figures) -> usize| median(figures, of);
        let (p99, loaded) = (time(|f| f.p99), time(|f| f.loaded_p99));
        println!(
            "| {name} | {:.1} ms | {p99:.1} ms | {loaded:.1} ms | {:.2} | {} % | {} | {} |",
            time(|f| f.p50),
            loaded / p99,
            100 * count(|f| f.given_up) / PAGES,
            count(|f| f.backlog),
            count(|f| f.failed),
        );
    }
    Ok(())
}

fn median<T: Ord + Copy>(figures: &[Figures], of: fn(&Figures) -> T) -> T {
    let mut all: Vec<_> = figures.iter().map(of).collect();
    all.sort();
    all[all.len() / 2]
}

async fn round_of(address: SocketAddr, origin: &Origin) -> Result<Figures, String> {
    until_served(address).await?;
    let (unloaded, _) = pages(address).await;
    let mut streams = JoinSet::new();
    for who in 0..STREAMS {
        streams.spawn(hold_stream(address, who));
    }
    sleep(Duration::from_secs(1)).await;
    let (loaded, given_up) = pages(address).await;
    streams.shutdown().await;
    // Until the server knows that they are gone.
    sleep(Duration::from_secs(1)).await;
    let (backlog, failed) = rush(address, origin).await;
    Ok(Figures {
        p50: unloaded[PAGES / 2],
        p99: unloaded[PAGES * 99 / 100 - 1],
        loaded_p99: loaded[PAGES * 99 / 100 - 1],
        given_up,
        backlog,
        failed,
    })
}

/// The times of pages that two people ask for one after the other, sorted, and how many were given up.
async fn pages(address: SocketAddr) -> (Vec<Duration>, usize) {
    let mut asking = JoinSet::new();
    for who in 0..2 {
        asking.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..PAGES / 2 {
                let start = Instant::now();
                let is_given_up = timeout(PATIENCE, page(address, who)).await.is_err();
                times.push(if is_given_up { PATIENCE } else { start.elapsed() });
                if is_given_up {
                    // The rest would fare the same.
                    times.resize(PAGES / 2, PATIENCE);
                    break;
                }
            }
            times
        });
    }
    let mut times = asking.join_all().await.concat();
    times.sort();
    let given_up = times.iter().filter(|time| **time >= PATIENCE).count();
    (times, given_up)
}

/// Asks for a page on a connection of its own; the head of the answer.
async fn page(address: SocketAddr, who: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET /console/api/apps HTTP/1.1\r\nHost: dify.example\r\nCookie: access_token={who}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Asks for a stream and reads what comes, for ever.
async fn hold_stream(address: SocketAddr, who: usize) {
    let body = "{\"query\": \"hi\", \"user\": \"u\", \"response_mode\": \"streaming\"}";
    let request = format!(
        "POST /v1/chat-messages HTTP/1.1\r\nHost: dify.example\r\nAuthorization: Bearer app-{who}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return;
    };
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    std::future::pending().await
}

/// Many people ask for a page each at once: the longest backlog of the server, and how many were not answered well.
async fn rush(address: SocketAddr, origin: &Origin) -> (usize, usize) {
    let mut asking = JoinSet::new();
    for who in 0..RUSH {
        asking.spawn(timeout(Duration::from_secs(30), page(address, who)));
    }
    let mut longest = 0;
    let watching = async {
        let mut last = [0; 3];
        loop {
            // What is accepted within a moment has not waited: a place was free.
            last.rotate_left(1);
            last[2] = backlog(origin.address.port());
            longest = longest.max(last.into_iter().min().unwrap_or_default());
            sleep(Duration::from_millis(3)).await;
        }
    };
    let answers = tokio::select! {
        answers = asking.join_all() => answers,
        () = watching => Vec::new(),
    };
    let is_well = |answer: &Result<std::io::Result<String>, _>| matches!(answer, Ok(Ok(text)) if text.starts_with("HTTP/1.1 200"));
    (
        longest,
        RUSH - answers.iter().filter(|answer| is_well(answer)).count(),
    )
}

/// Connections that wait to be accepted at `port`, as Linux tells.
fn backlog(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let waiting = table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let listens = words.get(1)?.ends_with(&format!(":{port:04X}")) && *words.get(3)? == "0A";
        listens.then(|| {
            words
                .get(4)?
                .split(':')
                .nth(1)
                .and_then(|hex| usize::from_str_radix(hex, 16).ok())
        })?
    });
    waiting.unwrap_or_default()
}

async fn until_served(address: SocketAddr) -> Result<(), String> {
    for _ in 0..100 {
        if page(address, 0)
            .await
            .is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(format!("{address} does not answer"))
}

/// The server of ten connections.
struct Origin {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Origin {
    async fn start() -> Result<Self, String> {
        let listen = || {
            let socket = TcpSocket::new_v4()?;
            socket.bind(([127, 0, 0, 1], 0).into())?;
            socket.listen(2048)
        };
        let listener = listen().map_err(|error: std::io::Error| error.to_string())?;
        Ok(Self {
            address: listener.local_addr().map_err(|error| error.to_string())?,
            serving: tokio::spawn(accept(listener)),
        })
    }
}

async fn accept(listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(SLOTS));
    let mut connections = JoinSet::new();
    loop {
        // Before it is accepted, as gunicorn's workers do.
        let slot = slots.clone().acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        connections.spawn(async move {
            let _slot = slot;
            let _ = serve(stream).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers request after request; a connection at rest is closed after two seconds.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = held.split_off(end + 4);
                break String::from_utf8_lossy(&std::mem::replace(&mut held, rest)).to_ascii_lowercase();
            }
            let mut piece = [0; 4096];
            let read = timeout(Duration::from_secs(2), stream.read(&mut piece))
                .await
                .unwrap_or(Ok(0))?;
            if read == 0 {
                return Ok(());
            }
            held.extend_from_slice(&piece[..read]);
        };
        if head.starts_with("post") {
            return endless(stream).await;
        }
        if !head.starts_with("get /health") {
            sleep(PAGE).await;
        }
        let close = head.contains("connection: close");
        let fields = if close { "Connection: close\r\n" } else { "" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n{fields}\r\n[]"
        );
        stream.write_all(answer.as_bytes()).await?;
        if close {
            return Ok(());
        }
    }
}

/// Sends an event now and then until the client is gone.
async fn endless(mut stream: TcpStream) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(b"a\r\ndata: {}\n\n\r\n").await?;
        sleep(Duration::from_millis(100)).await;
    }
}

/// What stands before the server; ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // A master of nginx that is killed outright leaves its workers behind.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(
        name: &str,
        args: &Args,
        folder: &Path,
        origin: SocketAddr,
    ) -> Result<(SocketAddr, Self), String> {
        let (address, admin) = (free_address()?, free_address()?);
        let mut command = if name == "nginx" {
            let file = folder.join("nginx.conf");
            let pid = folder.join("nginx.pid");
            let text = format!(
                "worker_processes auto;\ndaemon off;\npid {};\nerror_log stderr crit;\nevents {{ worker_connections 1024; \
                 }}\nhttp {{\n  access_log off;\n  server {{\n    listen {address};\n    location / {{\n      proxy_pass \
                 http://{origin};\n      proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      \
                 proxy_buffering off;\n      proxy_read_timeout 3600s;\n      proxy_send_timeout 3600s;\n    }}\n  }}\n}}\n",
                pid.display()
            );
            std::fs::write(&file, text).map_err(|error| error.to_string())?;
            let mut nginx = Command::new("nginx");
            nginx.arg("-c").arg(file);
            nginx
        } else {
            let mut edge = Command::new(&args.edge);
            edge.args(["serve", "--upstream", &format!("http://{origin}")]);
            edge.args(["--listen", &address.to_string(), "--admin", &admin.to_string()]);
            // The last of two hundred waits longer than short requests may by default.
            edge.env("DIFY_EDGE__UPSTREAMS__API__TIMEOUTS__TOTAL", "30s");
            edge
        };
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let child = command
            .env("PATH", path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok((address, Self(child)))
    }
}

fn free_address() -> Result<SocketAddr, String> {
    let listener = StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map_err(|error| error.to_string())
}

//! Unary gRPC calls at a fixed rate: straight to a server, and through dify-edge that speaks HTTP/2 or HTTP/1.1 to it.
//!
//! `cargo bench --bench grpc` prints the table of README.md in this folder. Client and server are tonic's; only what is
//! spoken between proxy and server differs. Calls begin when they are due, whether others have ended or not (at the next
//! tick of the runtime's clock, a millisecond), and their time counts from then. What is compared takes its turn in one
//! run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::HeaderValue;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

#[path = "../tests/behaviour/support/raw.rs"]
#[expect(unreachable_pub, reason = "the tests' own")]
mod raw;

use raw::Raw;

/// Connections of the client; each has at most 128 calls at once.
const CLIENTS: usize = 8;
/// What a call carries, in bytes.
const MESSAGE: usize = 256;
/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ticks of the clock in which Linux counts processor time, a second.
const TICKS: f64 = 100.0;

/// Compare what is spoken to a gRPC server.
#[derive(Parser)]
struct Args {
    /// Calls a second.
    #[arg(long, default_value_t = 1500)]
    rate: u32,
    /// How long each way is measured in a round, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
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

/// A way to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    H2c,
    Http1,
}

/// What one way showed in one round.
#[derive(Clone, Copy, Default)]
struct Figures {
    p50: Duration,
    p99: Duration,
    /// Processor time of the proxy, in nanoseconds a call.
    processor: u64,
    connections: usize,
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
    let mut rows = [
        ("straight", Way::Straight, vec![]),
        ("dify-edge, `protocol: h2c`", Way::H2c, vec![]),
        ("dify-edge, `protocol: http1`", Way::Http1, vec![]),
    ];
    for round in 1..=args.rounds {
        for (name, way, figures) in &mut rows {
            eprintln!("round {round} of {}: {name}", args.rounds);
            figures.push(one(args, *way).await?);
        }
    }
    println!(
        "| {} calls/s | p50 | p99 | CPU of the proxy a call | connections to the server | failed |",
        args.rate
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for (name, _, figures) in &rows {
        let time = |of: fn(&Figures) -> Duration| median(figures, of).as_secs_f64() * 1e3;
        println!(
            "| {name} | {:.2} ms | {:.2} ms | {:.0} µs | {} | {} |",
            time(|f| f.p50),
            time(|f| f.p99),
            median(figures, |f| f.processor) as f64 / 1e3,
            median(figures, |f| f.connections),
            median(figures, |f| f.failed),
        );
    }
    let [_, (_, _, h2c), (_, _, http1)] = &rows;
    let ratio = |of: fn(&Figures) -> u64| median(h2c, of) as f64 / median(http1, of) as f64;
    println!(
        "h2c to http1: p99 {:.2}, processor {:.2}",
        ratio(|f| f.p99.as_micros() as u64),
        ratio(|f| f.processor)
    );
    Ok(())
}

fn median<T: Ord + Copy>(figures: &[Figures], of: fn(&Figures) -> T) -> T {
    let mut all: Vec<_> = figures.iter().map(of).collect();
    all.sort();
    all[all.len() / 2]
}

async fn one(args: &Args, way: Way) -> Result<Figures, String> {
    let server = Server::start(way == Way::Http1).await?;
    let edge = match way {
        Way::Straight => None,
        way => Some(Edge::start(args, way, server.address)?),
    };
    let address = edge.as_ref().map_or(server.address, |edge| edge.address);
    let clients = connect(address).await?;
    // What is opened once and allocated at first is not what is asked about.
    calls(&clients, args.rate, 2).await;
    let before = (
        edge.as_ref().map_or(0, Edge::processor),
        server.accepted.load(Ordering::SeqCst),
    );
    let (times, failed) = calls(&clients, args.rate, args.seconds).await;
    let spent = edge.as_ref().map_or(0, Edge::processor) - before.0;
    // Those that are shared were opened in the first two seconds.
    let accepted = server.accepted.load(Ordering::SeqCst);
    Ok(Figures {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        processor: spent / times.len() as u64,
        connections: match way {
            Way::Http1 => accepted - before.1,
            _ => accepted,
        },
        failed,
    })
}

/// The times of so many seconds of calls, sorted, and how many failed.
async fn calls(clients: &[Channel], rate: u32, seconds: u32) -> (Vec<Duration>, usize) {
    let start = Instant::now();
    let mut under_way = JoinSet::new();
    for number in 0..rate * seconds {
        let due = start + Duration::from_secs(1) * number / rate;
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let client = clients[number as usize % clients.len()].clone();
        let begun = Instant::now();
        under_way.spawn(async move {
            let is_well = tokio::time::timeout(PATIENCE, call(client))
                .await
                .is_ok_and(|it| it.is_ok());
            (begun.elapsed(), is_well)
        });
    }
    let ended = under_way.join_all().await;
    let mut times: Vec<_> = ended.iter().map(|(time, _)| *time).collect();
    times.sort();
    (times, ended.iter().filter(|(_, is_well)| !is_well).count())
}

async fn call(client: Channel) -> Result<(), Status> {
    static MESSAGE_BYTES: [u8; MESSAGE] = [b'x'; MESSAGE];
    let mut grpc = tonic::client::Grpc::new(client);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/bench.Echo/Unary");
    let request = Request::new(Bytes::from_static(&MESSAGE_BYTES));
    let answer: Response<Bytes> = grpc.unary(request, path, Raw).await?;
    match answer.into_inner().len() {
        MESSAGE => Ok(()),
        _ => Err(Status::data_loss("another message")),
    }
}

async fn connect(address: SocketAddr) -> Result<Vec<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let mut clients = Vec::new();
    for _ in 0..100 {
        match endpoint.connect().await {
            Ok(client) => clients.push(client),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
        if clients.len() == CLIENTS {
            return Ok(clients);
        }
    }
    Err(format!("{address} cannot be connected to"))
}

/// A server that answers each call with its message.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    async fn start(is_http1: bool) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                connections.spawn(async move {
                    let io = TokioIo::new(stream);
                    // How it ends makes no difference.
                    let _ = if is_http1 {
                        http1::Builder::new()
                            .serve_connection(io, service_fn(answer))
                            .await
                    } else {
                        http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service_fn(answer))
                            .await
                    };
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            accepted,
            accepting,
        })
    }
}

async fn answer(request: http::Request<Incoming>) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let echo = tower::service_fn(|request: Request<Bytes>| async {
        Ok::<_, Status>(Response::new(request.into_inner()))
    });
    let mut response = tonic::server::Grpc::new(Raw).unary(echo, request).await;
    // Without it there are no trailers over HTTP/1.1.
    let trailer = HeaderValue::from_static("grpc-status, grpc-message");
    response.headers_mut().insert("trailer", trailer);
    Ok(response)
}

/// The proxy; ends with this.
struct Edge {
    address: SocketAddr,
    child: Child,
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Edge {
    fn start(args: &Args, way: Way, server: SocketAddr) -> Result<Self, String> {
        let (address, admin) = (free_address()?, free_address()?);
        let child = Command::new(&args.edge)
            .args(["serve", "--upstream", &format!("http://{server}")])
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string()])
            .env(
                "DIFY_EDGE__UPSTREAMS__API__PROTOCOL",
                if way == Way::H2c { "h2c" } else { "http1" },
            )
            // As many as there are connections, of either sort.
            .env("DIFY_EDGE__UPSTREAMS__API__CAPACITY", "1000")
            .env("DIFY_EDGE__LOG__ACCESS", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|error| format!("dify-edge cannot be started: {error}"))?;
        Ok(Self { address, child })
    }

    /// Processor time so far, in nanoseconds.
    fn processor(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name of the program, which may hold blanks, ends with the last bracket.
        let words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = words
            .skip(11)
            .take(2)
            .filter_map(|word| word.parse::<f64>().ok())
            .sum();
        (ticks / TICKS * 1e9) as u64
    }
}

fn free_address() -> Result<SocketAddr, String> {
    let listener = StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map_err(|error| error.to_string())
}

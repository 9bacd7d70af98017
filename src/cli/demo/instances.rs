//! `demo --instances N --redis`: what one instance fetched the others serve, an edit through one changes what the
//! others serve, and a herd at all of them is one request upstream.
//!
//! Proxies and a made-up app run in this process; the Redis is given, or one is started for the time of the show.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::app::Edge;
use crate::cli::print;
use crate::config::cache::CacheType;
use crate::config::{AdminConfig, Config, ListenConfig, ReplicaConfig, UpstreamConfig};
use crate::types::time::Clock;
use crate::types::units::Span;

/// Clients of the herd at each instance.
const HERD: usize = 100;
/// How long the made-up app thinks about what the herd asks for.
const THOUGHT: Duration = Duration::from_millis(80);
/// How long anything may take until it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether an edit is seen.
const LOOK: Duration = Duration::from_millis(1);

const EDIT: &str = "POST /console/api/apps/5f0e7a3c-0000-4000-8000-00000000000a/model-config";

/// Shows it, until it is over or a signal comes.
///
/// # Errors
/// What could not be started, or did not hold.
pub(super) async fn show(instances: u16, redis: &str) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        shown = play(instances, redis) => shown,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        _ = terminate.recv() => Err("terminated".to_owned()),
    }
}

async fn play(instances: u16, redis: &str) -> Result<(), String> {
    let (url, _server) = match redis {
        "" => {
            let server = Redis::start().await?;
            (format!("redis://127.0.0.1:{}", server.port), Some(server))
        }
        url => (url.to_owned(), None),
    };
    let app = App::start().await?;
    let mut edges = Vec::new();
    for _ in 0..instances {
        let edge = Edge::start(config(app.address, &url), Clock::System).await;
        edges.push(edge.map_err(|error| error.to_string())?);
    }
    let whose = if redis.is_empty() {
        "a Redis of their own"
    } else {
        "the given Redis"
    };
    print(&format!("{instances} instances before one app, with {whose}\n"));
    for edge in &edges {
        until("the Redis of --redis to be used", async || {
            let ready = ask(edge.admin, "GET /ready").await?.1;
            Ok(ready.contains("\"used\": true") && ready.contains("\"heard\": true"))
        })
        .await?;
    }

    print("\n1. One fetches, all serve\n");
    let before = app.asked();
    for (number, edge) in edges.iter().enumerate() {
        say(number, &ask(edge.addresses[0], "GET /v1/parameters").await?);
        // An answer goes to Redis after its client has it.
        sleep(Duration::from_millis(50)).await;
    }
    print("   once more\n");
    for (number, edge) in edges.iter().enumerate() {
        say(number, &ask(edge.addresses[0], "GET /v1/parameters").await?);
    }
    hold("requests upstream", app.asked() - before, 1)?;

    print("\n2. An edit through the last instance\n");
    let editor = edges.last().ok_or("no instance")?.addresses[0];
    let (head, _) = ask(editor, EDIT).await?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("the edit was refused: {head}"));
    }
    let edited = Clock::System.now().monotonic;
    let seeing = edges.iter().map(|edge| {
        let address = edge.addresses[0];
        until("the edit to be seen", async move || {
            Ok(ask(address, "GET /v1/parameters").await?.1.contains("prompt 2"))
        })
    });
    for (number, seen) in join_all(seeing).await.into_iter().enumerate() {
        let late = seen?.saturating_duration_since(edited).as_secs_f64() * 1e3;
        print(&format!(
            "   instance {number}: the new prompt, {late:.1} ms after the edit was answered\n"
        ));
    }

    print(&format!(
        "\n3. {HERD} clients at each instance at once, for what nobody has\n"
    ));
    let before = app.asked();
    let mut herd = tokio::task::JoinSet::new();
    for edge in &edges {
        let address = edge.addresses[0];
        for _ in 0..HERD {
            herd.spawn(async move { ask(address, "GET /v1/meta").await });
        }
    }
    let mut served = 0;
    while let Some(answer) = herd.join_next().await {
        let (head, _) = answer.map_err(|error| error.to_string())??;
        served += usize::from(head.starts_with("HTTP/1.1 200"));
    }
    hold("clients served", served, HERD * edges.len())?;
    hold("requests upstream", app.asked() - before, 1)?;
    for edge in edges {
        edge.drain(PATIENCE).await;
    }
    Ok(())
}

/// Says what it came to, and whether that is what it should be.
fn hold(what: &str, is: usize, should: usize) -> Result<(), String> {
    print(&format!("   {what}: {is}\n"));
    if is == should {
        return Ok(());
    }
    Err(format!("{what}: {is} in place of {should}"))
}

fn say(number: usize, (head, _): &(String, String)) {
    let status = head.lines().find_map(|line| line.strip_prefix("Cache-Status: "));
    print(&format!(
        "   instance {number}: {}\n",
        status.unwrap_or("no Cache-Status")
    ));
}

/// Looks again and again; tells when it was so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> Result<bool, String>) -> Result<Instant, String> {
    let looking = async {
        while !is().await? {
            sleep(LOOK).await;
        }
        Ok(Clock::System.now().monotonic)
    };
    timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| Err(format!("waited in vain for {what}")))
}

/// One request with a connection of its own; head and body of the answer.
async fn ask(address: SocketAddr, line: &str) -> Result<(String, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // The host is a part of the key: all ask for the same.
        let fields = "Host: dify.example\r\nAuthorization: Bearer app-demo\r\nContent-Type: application/json";
        let request =
            format!("{line} HTTP/1.1\r\n{fields}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(PATIENCE, exchange)
        .await
        .map_err(|_| format!("no answer to {line}"))?;
    let answer = answer.map_err(|error| format!("{line}: {error}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("no whole answer to {line}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

fn config(app: SocketAddr, url: &str) -> Config {
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    let replica = ReplicaConfig {
        url: format!("http://{app}"),
        ..ReplicaConfig::default()
    };
    let api = UpstreamConfig {
        replicas: vec![replica],
        ..UpstreamConfig::default()
    };
    let mut config = Config {
        listen: vec![ListenConfig {
            address: free,
            ..ListenConfig::default()
        }],
        admin: AdminConfig {
            address: free,
            ..AdminConfig::default()
        },
        upstreams: [("api".to_owned(), api)].into(),
        ..Config::default()
    };
    config.cache.r#type = CacheType::Redis;
    config.cache.redis.url = Some(url.to_owned());
    // All instances and their clients share this machine: what is slow is not Redis.
    config.cache.redis.timeout = Span::millis(500);
    // In a Redis that others use, too.
    config.cache.redis.prefix = format!("dify-edge-demo-{}:", std::process::id());
    config
}

/// A made-up app whose prompt has a number that each write makes higher.
struct App {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let (asked, prompt) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(1)));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, prompt) = (counted.clone(), prompt.clone());
                let answering = service_fn(move |request| {
                    let (asked, prompt) = (asked.clone(), prompt.clone());
                    async move { Ok::<_, Infallible>(answer(&request, &asked, &prompt).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answering));
            }
        });
        Ok(Self { address, asked })
    }

    /// Reads so far, probes left out.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn answer(
    request: &Request<Incoming>,
    asked: &AtomicUsize,
    prompt: &AtomicUsize,
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/health" {
        if request.method() == Method::GET {
            asked.fetch_add(1, Ordering::SeqCst);
        } else {
            prompt.fetch_add(1, Ordering::SeqCst);
        }
    }
    if request.uri().path() == "/v1/meta" {
        sleep(THOUGHT).await;
    }
    let text = format!(
        "{{\"opening_statement\": \"prompt {}\"}}",
        prompt.load(Ordering::SeqCst)
    );
    let mut response = Response::new(Full::from(text));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// A Redis of the show's own, which ends with it.
struct Redis {
    port: u16,
    child: Child,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    async fn start() -> Result<Self, String> {
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| error.to_string())?.port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            // Nothing is written, and nothing that lies about is read.
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--dbfilename",
                &format!("dify-edge-demo-{port}.rdb"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!("cannot start redis-server ({error}); give a Redis with --redis redis://HOST:PORT")
            })?;
        let redis = Self { port, child };
        until("redis-server to come up", async || {
            Ok(TcpStream::connect(("127.0.0.1", port)).await.is_ok())
        })
        .await?;
        Ok(redis)
    }
}

//! Background work: reads the metrics of each replica from time to time, for its score.
//!
//! Over a connection of its own and beside the request path: whoever shows the metrics of a replica need not be the
//! replica. What is made of them is decided in `health::scrape`; nothing that comes is kept but that.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::IntCounter;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::health::scrape::text::{Lines, Sample};
use super::health::scrape::{Absent, Watched};
use super::replica::Replica;
use crate::config::scrape::ScrapeConfig;
use crate::types::time::Clock;

/// A longer answer is not read to its end, and counts for nothing.
const LONGEST_BODY: usize = 64 << 20;
/// What was read counts for so many intervals.
const COUNTS: u32 = 3;

/// Why a scrape failed, for the log.
type Why = Cow<'static, str>;

/// Scrapes one replica for ever.
pub(super) async fn keep(
    replica: Arc<Replica>,
    config: ScrapeConfig,
    [works, fails]: [IntCounter; 2],
    clock: Clock,
) {
    let interval = config.interval.0;
    let mut watched = [&config.cpu, &config.network].map(|it| it.clone().map(Watched::new));
    let mut worked = None;
    // Not all replicas, and not all proxies, at the same moment.
    let spread = ahash::RandomState::new().hash_one(replica.place()) % interval.as_millis().max(1) as u64;
    sleep(Duration::from_millis(spread)).await;
    loop {
        let started = clock.now().monotonic;
        let read = timeout(config.timeout.0, read(&replica, &config, &mut watched)).await;
        let now = clock.now().monotonic;
        let result = read.unwrap_or(Err("no answer in time".into())).and_then(|()| {
            let [cpu, network] = watched.each_mut().map(|it| it.as_mut().map(|it| it.value(now)));
            let known = |value: &Option<Result<f64, Absent>>| value.as_ref()?.as_ref().ok().copied();
            let until = now + COUNTS * interval;
            let mut signals = replica.signals.lock();
            signals.resources.scraped(known(&cpu), known(&network), until);
            for (name, value) in [("cpu", cpu), ("network", network)] {
                if let Some(Err(why)) = value.filter(|value| *value != Err(Absent::NotYet)) {
                    return Err(format!("{name}: {why}").into());
                }
            }
            Ok(())
        });
        match &result {
            Ok(()) => works.inc(),
            Err(_) => fails.inc(),
        }
        if worked != Some(result.is_ok()) {
            match &result {
                Ok(()) => tracing::info!(replica = replica.url, "the replica's resources can be scraped"),
                Err(why) => {
                    tracing::warn!(replica = replica.url, %why, "the replica's resources cannot be scraped")
                }
            }
        }
        worked = Some(result.is_ok());
        sleep(interval.saturating_sub(now - started)).await;
    }
}

/// Asks once, and shows all who watch what comes. When it fails they have seen nothing.
async fn read(
    replica: &Replica,
    config: &ScrapeConfig,
    watched: &mut [Option<Watched>; 2],
) -> Result<(), Why> {
    for watched in watched.iter_mut().flatten() {
        watched.forget();
    }
    let endpoint = &replica.endpoint;
    let uri = config.uri(&endpoint.host, endpoint.port)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let address = endpoint
        .addresses()
        .first()
        .filter(|_| config.is_at_replica())
        .copied();
    let tcp = match address {
        Some(address) => TcpStream::connect((address.ip(), port)).await,
        None => TcpStream::connect((host, port)).await,
    };
    let tcp = tcp.map_err(|error| unreachable(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(tcp))
        .await
        .map_err(|error| broken(&error))?;
    tokio::select! {
        biased;
        read = answer(sender, &uri, watched) => read,
        Err(error) = connection => Err(broken(&error)),
    }
}

/// Reads the answer to its end.
async fn answer(
    mut sender: http1::SendRequest<Empty<&'static [u8]>>,
    uri: &Uri,
    watched: &mut [Option<Watched>; 2],
) -> Result<(), Why> {
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(USER_AGENT, "dify-edge-scrape")
        .header(ACCEPT, "text/plain;version=0.0.4")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| "the URL cannot be asked for")?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the answer is {}", answer.status()).into());
    }
    if answer.headers().contains_key(CONTENT_ENCODING) {
        return Err("the answer is compressed, which nobody asked for".into());
    }
    let (mut body, mut length, mut lines) = (answer.into_body(), 0, Lines::default());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else {
            continue;
        };
        length += data.len();
        if length > LONGEST_BODY {
            return Err("the answer is too long".into());
        }
        lines.feed(&data, |line| {
            if let Some(sample) = Sample::read(line) {
                for watched in watched.iter_mut().flatten() {
                    watched.see(&sample);
                }
            }
        });
    }
    Ok(())
}

fn unreachable(error: &io::Error) -> Why {
    format!("cannot connect: {error}").into()
}

fn broken(error: &hyper::Error) -> Why {
    format!("the exchange broke: {error}").into()
}

//! Drives one connection: finds out what the peer speaks, and ends it in time and in order.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::BytesMut;
use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::access_log::Ledger;
use super::link::Link;
use super::listener::Slot;
use super::metrics::Protocol;
use super::recall::Recall;
use super::screen::{Screen, ScreenSetup, Transport};
use super::service::{self, Context};
use super::stall::Streams;
use crate::config::LimitsConfig;
use crate::types::request::Client;
use crate::types::{Body, Failure};

/// Bytes read at once.
const PIECE: usize = 4096;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a peer may send on one HTTP/2 stream before it was read.
const H2_WINDOW: u32 = 1 << 20;
/// Header fields that hyper makes room for without allocating.
const H1_FIELDS: usize = 100;
/// hyper's own bound of a connection's buffers; ours lie below it.
const H1_BUFFER: usize = 400 << 10;

/// What all connections of the stage share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Arc<LimitsConfig>,
    pub(super) ledger: Arc<Ledger>,
    /// No new requests.
    pub(super) drain: CancellationToken,
    /// Nothing any more.
    pub(super) stop: CancellationToken,
    pub(super) recall: Arc<Recall>,
}

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    /// Its first bytes will tell (HTTP/2 by prior knowledge, RFC 9113 section 3.3).
    Unknown,
    Http1,
    Http2,
}

/// Serves one connection until it ends.
pub(super) async fn drive<IO, S>(
    mut io: IO,
    spoken: Spoken,
    client: Client,
    mut slot: Option<Slot>,
    stack: S,
    shared: &Shared,
) where
    IO: Transport,
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut prefix = BytesMut::new();
    let mut since = shared.ledger.clock.now().monotonic;
    let spoken = match spoken {
        Spoken::Unknown => {
            let first = tokio::select! {
                read = timeout(shared.limits.idle.0, read_some(&mut io, &mut prefix)) => read,
                () = shared.drain.cancelled() => return,
            };
            if !matches!(first, Ok(Ok(1..))) {
                return;
            }
            since = shared.ledger.clock.now().monotonic;
            // A peer that stops in the middle of a preface is left to the judge of HTTP/1, which will find
            // that its time is over.
            let _ = timeout(shared.limits.header_read.0, read_preface(&mut io, &mut prefix)).await;
            if prefix.starts_with(PREFACE) {
                Spoken::Http2
            } else {
                Spoken::Http1
            }
        }
        known => known,
    };
    let protocol = match spoken {
        Spoken::Http2 => Protocol::H2,
        Spoken::Http1 | Spoken::Unknown => Protocol::H1,
    };
    let gauge = shared.ledger.metrics.connection(protocol);
    if let Some(slot) = &mut slot {
        slot.gauge = Some(gauge);
    }
    let link = Arc::new(Link::default());
    let setup = ScreenSetup {
        limits: &shared.limits,
        link: link.clone(),
        client,
        ledger: shared.ledger.clone(),
        recall: shared.recall.clone(),
        stop: shared.stop.clone(),
        slot,
        prefix,
        since,
    };
    let context = Arc::new(Context {
        client,
        link,
        ledger: shared.ledger.clone(),
        limits: shared.limits.clone(),
        recall: shared.recall.clone(),
    });
    match protocol {
        // Boxed, so that a connection that has said nothing yet does not hold the room.
        Protocol::H1 => Box::pin(drive_h1(Screen::judging(io, setup), stack, context, shared)).await,
        Protocol::H2 => Box::pin(drive_h2(Screen::passing(io, setup), stack, context, shared)).await,
    }
}

async fn read_preface<IO: Transport>(io: &mut IO, prefix: &mut BytesMut) {
    while prefix.len() < PREFACE.len()
        && PREFACE.starts_with(prefix)
        && matches!(read_some(io, prefix).await, Ok(1..))
    {}
}

/// Reads behind `bytes`. Holds no buffer while there is nothing to read.
async fn read_some<IO: Transport>(io: &mut IO, bytes: &mut BytesMut) -> std::io::Result<usize> {
    poll_fn(|cx| {
        let mut piece = [const { MaybeUninit::uninit() }; PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut piece))?;
        bytes.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    })
    .await
}

async fn drive_h1<IO, S>(mut screen: Screen<IO>, stack: S, context: Arc<Context>, shared: &Shared)
where
    IO: Transport,
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    let limits = &shared.limits;
    let mut builder = http1::Builder::new();
    let head_bytes = limits.header_bytes.0.saturating_add(limits.uri_bytes.0);
    let head_bytes = usize::try_from(head_bytes).unwrap_or(usize::MAX);
    builder
        .timer(TokioTimer::new())
        // The screen has its own, which answers.
        .header_read_timeout(None)
        .title_case_headers(true)
        .max_buf_size(head_bytes.saturating_mul(2).max(H1_BUFFER));
    if limits.header_count > H1_FIELDS {
        builder.max_headers(limits.header_count);
    }
    loop {
        let at_rest = shared.ledger.metrics.at_rest();
        let came = tokio::select! {
            // First what the peer sends: a request that is here when the drain begins is served.
            biased;
            came = screen.wait_for_request() => came,
            () = shared.drain.cancelled() => false,
        };
        drop(at_rest);
        if !came {
            let _ = screen.shutdown().await;
            return;
        }
        // Boxed, so that a connection at rest does not hold the room.
        match Box::pin(serve_h1(&builder, screen, stack.clone(), &context, shared)).await {
            Some(resting) => screen = resting,
            None => return,
        }
    }
}

/// Serves requests until the connection ends, or is at rest: then it comes back.
async fn serve_h1<IO, S>(
    builder: &http1::Builder,
    screen: Screen<IO>,
    stack: S,
    context: &Arc<Context>,
    shared: &Shared,
) -> Option<Screen<IO>>
where
    IO: Transport,
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    let serving = context.clone();
    let service = service_fn(move |request| service::serve(serving.clone(), stack.clone(), request));
    let mut connection = builder
        .serve_connection(TokioIo::new(screen), service)
        .with_upgrades();
    let parked = poll_fn(|_| {
        if context.link.take_parked() {
            Poll::Ready(())
        } else {
            // Only the connection itself can have parked, and it was polled just before.
            Poll::Pending
        }
    });
    let ended = tokio::select! {
        // First the connection: a request that is here when the drain begins is served.
        biased;
        ended = &mut connection => ended,
        () = parked => {
            let parts = connection.into_parts()?;
            let mut screen = parts.io.into_inner();
            screen.put_back(&parts.read_buf);
            return Some(screen);
        }
        () = shared.drain.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
    None
}

async fn drive_h2<IO, S>(screen: Screen<IO>, stack: S, context: Arc<Context>, shared: &Shared)
where
    IO: Transport,
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    let limits = &shared.limits;
    let idle = limits.idle.0;
    let link = context.link.clone();
    let opened = shared.ledger.clock.now().monotonic;
    let service = service_fn(move |request| service::serve(context.clone(), stack.clone(), request));
    let clock = shared.ledger.clock.clone();
    let mut builder = http2::Builder::new(Streams { clock, idle });
    let list_bytes = limits.header_bytes.0.saturating_add(limits.uri_bytes.0);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(4 * H2_WINDOW)
        .max_concurrent_streams(limits.h2_streams)
        .max_pending_accept_reset_streams(limits.h2_resets)
        .max_local_error_reset_streams(limits.h2_resets)
        .max_header_list_size(u32::try_from(list_bytes.saturating_mul(4)).unwrap_or(u32::MAX))
        .keep_alive_interval(idle)
        .keep_alive_timeout(limits.header_read.0);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(screen), service));
    let mut draining = false;
    loop {
        // What is left of answers that are complete is the client's to take; it has as long again for it.
        let patience = if draining { 2 * idle } else { idle };
        let left = || {
            let now = shared.ledger.clock.now().monotonic;
            let rested = link.resting_since(opened);
            rested.map_or(idle, |since| (since + patience).saturating_duration_since(now))
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            () = shared.drain.cancelled(), if !draining => {}
            () = sleep(left()) => {
                if !left().is_zero() {
                    continue;
                }
                if draining {
                    return;
                }
            }
        }
        draining = true;
        connection.as_mut().graceful_shutdown();
    }
}

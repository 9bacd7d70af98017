//! One request over a stream of a shared connection, to the head of its answer.
//!
//! What is lost with a connection before it can have been read is sent again at once on another; so is what the
//! replica has refused before it did anything (RFC 9113 section 8.7). Anything else is told to the stages above, which
//! know what may be asked twice.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::Response;
use hyper::body::Incoming;

use super::pool::{SharedPool, Stream};
use crate::types::endpoint::Endpoint;
use crate::types::outcome::Phases;
use crate::types::request::{BodySlot, Dispatch, FetchHead};
use crate::types::time::Clock;
use crate::types::{Body, Failure};
use crate::upstream::request_body::{Progress, RequestBody};
use crate::upstream::response_body::{Carrier, Cutting, Held};
use crate::upstream::service::{self, NoAnswer};

/// Connections that one request is tried on before its replica is taken for broken.
const TRIES: usize = 3;

/// An answer's head.
struct Sent {
    response: Response<Incoming>,
    progress: Progress,
    first_byte: Duration,
}

/// Sends the request of `dispatch` and gives its answer.
pub(in crate::upstream) async fn exchange(
    pool: &Arc<SharedPool>,
    dispatch: Dispatch,
    clock: &Clock,
) -> Result<Response<Body>, Failure> {
    let Dispatch {
        fetch,
        body,
        endpoint,
        slot,
    } = dispatch;
    let start = clock.now().monotonic;
    let mut tries = 0;
    let (stream, sent, connect) = loop {
        tries += 1;
        let (stream, was_open) = match slot {
            Some(_) => pool.stream(fetch.deadline).await?,
            None => (pool.alone(fetch.deadline).await?, false),
        };
        let connect = match was_open {
            true => Duration::ZERO,
            false => clock.now().monotonic.duration_since(start),
        };
        match send(&stream, &fetch, &body, &endpoint, clock).await {
            Ok(sent) => break (stream, sent, connect),
            Err(NoAnswer { failure, broke: true })
                if !failure.sent && tries < TRIES && body.is_available() =>
            {
                pool.metrics.stale.inc();
            }
            Err(none) => return Err(none.failure),
        }
    };
    let phases = Phases {
        queue: Duration::ZERO,
        connect,
        first_byte: sent.first_byte,
    };
    let held = Held {
        carrier: Carrier::Shared {
            cutting: Cutting(sent.progress.clone()),
            stream,
        },
        slot,
        progress: sent.progress,
    };
    Ok(service::hand_over(sent.response, held, &fetch, phases, clock))
}

/// Sends the request on `stream` and waits for the head of the answer.
async fn send(
    stream: &Stream,
    fetch: &FetchHead,
    body: &BodySlot,
    endpoint: &Endpoint,
    clock: &Clock,
) -> Result<Sent, NoAnswer> {
    let Some((content, progress)) = RequestBody::take(body, clock.clone(), true) else {
        return Err(NoAnswer::gone());
    };
    let request = service::build(fetch, content, None, endpoint, true);
    let connection = &stream.connection;
    let (written, received) = (connection.written(), connection.received());
    let start = clock.now().monotonic;
    let (head, given) = connection.send(request);
    let mut head = Box::pin(head);
    let mut takes_more = true;
    let outcome = loop {
        let limit = service::limit(fetch, &progress);
        if limit.is_some_and(|limit| limit <= clock.now().monotonic) {
            if connection.received() == received {
                // Not a word on any stream: whoever comes next should not wait for it as well.
                connection.retire();
            }
            break Err(service::overdue(&progress));
        }
        tokio::select! {
            biased;
            done = head.as_mut() => break Ok(done),
            () = connection.ended(), if takes_more => {
                // What it had taken before goes on.
                takes_more = false;
                match head.as_mut().now_or_never() {
                    Some(done) => break Ok(done),
                    // Handed over at the very moment in which it ended, a request stays where it is: neither an answer
                    // nor an error would ever come.
                    None if given.is_waiting() => break Err(NoAnswer::lost(false)),
                    None => {}
                }
            }
            () = service::until(limit) => {}
        }
    };
    let mut none = match outcome {
        Ok(Ok(response)) => {
            progress.answered();
            return Ok(Sent {
                response,
                progress,
                first_byte: clock.now().monotonic.duration_since(start),
            });
        }
        Ok(Err(mut error)) => {
            tracing::debug!(error = %error.error(), "no answer from a replica");
            let refused = error.take_message().is_some() || is_refusal(error.error());
            match progress.failure() {
                Some(failure) => NoAnswer {
                    failure,
                    broke: false,
                },
                None => NoAnswer::lost(!refused && connection.written() > written),
            }
        }
        Err(none) => none,
    };
    drop(head);
    if none.broke && !none.failure.sent {
        progress.take_back(body);
    } else {
        progress.cut();
        if connection.written() > written {
            none.failure.sent = true;
        }
    }
    Err(none)
}

/// Whether the replica says that it did nothing of a request: `REFUSED_STREAM`, or a `GOAWAY` that names an earlier
/// stream as the last (of other streams hyper reports how the connection ended).
fn is_refusal(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (error.is_go_away() || error.is_reset() && is_refused);
        }
        source = error.source();
    }
    false
}

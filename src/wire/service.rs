//! What hyper calls for each request: hands it to the stages in the one shape that they know, turns a
//! failure into an answer, and keeps the record.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tower::ServiceExt;

use super::access_log::{Ledger, Record};
use super::inbound::{self, Manner, Watch};
use super::limits;
use super::link::{Active, Link};
use super::outgoing::{Broken, Outgoing};
use super::recall::{self, Recall};
use super::respond::{failure_response, grpc_response, status};
use super::screen::HeadLimits;
use crate::config::LimitsConfig;
use crate::types::failure::Origin;
use crate::types::grpc;
use crate::types::repeat::Repeatable;
use crate::types::request::Client;
use crate::types::{Body, Failure, FailureKind, Outcome};

/// What the requests of one connection share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) limits: Arc<LimitsConfig>,
    pub(super) recall: Arc<Recall>,
}

/// The service of one connection, for `hyper::service::service_fn`.
pub(super) async fn serve<S>(
    context: Arc<Context>,
    stack: S,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Failure>,
{
    let (refusal, seen) = context.link.begin();
    let (mut parts, incoming) = request.into_parts();
    let active = Active::new(context.link.clone(), context.ledger.clock.clone());
    let peer = context.client.ip();
    let record = Record::new(&context.ledger, active, peer, &parts);
    parts.extensions.insert(record.known.clone());
    let seen = seen.filter(|_| recall::keeps_connection(&parts.headers));
    let (method, version) = (parts.method.clone(), parts.version);
    let prepared = match refusal {
        Some(failure) => Err(failure),
        None => prepare(&mut parts, &context),
    };
    let may_upgrade = parts.extensions.get::<OnUpgrade>().is_some();
    let asked = version == Version::HTTP_11 && parts.headers.contains_key(UPGRADE);
    if asked && !may_upgrade {
        parts.headers.remove(UPGRADE);
    }
    let is_grpc = grpc::is_grpc(&parts.headers);
    let manner = Manner {
        is_h2: version == Version::HTTP_2,
        is_patient: is_grpc && version == Version::HTTP_2,
    };
    let ledger = &context.ledger;
    let (body, watch) = inbound::body(incoming, &context.link, &ledger.clock, &context.limits, manner);
    let result = match prepared {
        Ok(()) => stack.oneshot(Request::from_parts(parts, body)).await,
        Err(failure) => {
            drop(body);
            Err(failure)
        }
    };
    let result = result.and_then(|response| check_response(response, may_upgrade));
    if asked {
        let agreed = result
            .as_ref()
            .is_ok_and(|response| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        context.link.decide_upgrade(agreed);
    }
    if let Some(seen) = seen
        && version == Version::HTTP_11
        && let Ok(response) = &result
        && let Some(repeatable) = response.extensions().get::<Repeatable>()
    {
        context.recall.remember(seen, response, repeatable.clone());
    }
    let asked = Asked {
        method,
        version,
        is_grpc,
    };
    Ok(finish(result, record, &watch, &asked, &context))
}

/// Gives the head the shape that the stages expect.
fn prepare(parts: &mut Parts, context: &Context) -> Result<(), Failure> {
    if parts.version == Version::HTTP_2 {
        limits::check_h2(parts, &HeadLimits::new(&context.limits))?;
    } else {
        limits::to_origin_form(parts);
    }
    // An upgrade may be ignored (RFC 9110 section 7.8). Others than WebSocket would carry requests past
    // this proxy unseen (h2c), so the upstream is not asked.
    if !asks_for_websocket(&parts.headers) {
        parts.extensions.remove::<OnUpgrade>();
    }
    parts.extensions.insert(context.client);
    Ok(())
}

/// Whether the other protocol that a request asks for, if any, is the one that it may have.
pub(super) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(UPGRADE).is_some_and(is_websocket)
}

fn check_response(response: Response<Body>, may_upgrade: bool) -> Result<Response<Body>, Failure> {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if response.status().is_informational() && !(switching && may_upgrade) {
        return Err(Failure::new(
            FailureKind::UpstreamReset,
            "the upstream answered with a status that ends nothing",
        ));
    }
    Ok(response)
}

/// What the answer goes by.
struct Asked {
    method: Method,
    version: Version,
    is_grpc: bool,
}

fn finish(
    result: Result<Response<Body>, Failure>,
    mut record: Record,
    watch: &Watch,
    asked: &Asked,
    context: &Context,
) -> Response<Outgoing> {
    let Asked {
        ref method,
        version,
        is_grpc,
    } = *asked;
    let mut response = match result {
        Ok(response) => {
            record.outcome = response.extensions().get::<Outcome>().copied();
            record.status = response.status().as_u16();
            response
        }
        Err(mut failure) => {
            // A stage further on sees only that the body broke off; here it is known why.
            if let Some(cause) = watch.failure() {
                failure = Failure {
                    sent: failure.sent,
                    outcome: failure.outcome,
                    ..cause
                };
            }
            record.outcome = failure.outcome;
            if failure.kind.origin() != Origin::Upstream {
                context.ledger.metrics.count_rejected(failure.kind);
            }
            // Also where the answer says it in another way.
            record.status = status(failure.kind).as_u16();
            if is_grpc {
                grpc_response(&failure)
            } else {
                failure_response(&failure)
            }
        }
    };
    // Nobody may take the rest of the request, and what is left of it is not the next one.
    if !watch.is_complete() && version < Version::HTTP_2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if method == Method::HEAD {
        let length = response.body().size_hint().exact();
        let headers = response.headers_mut();
        if let Some(length) = length.filter(|length| *length > 0)
            && !headers.contains_key(TRANSFER_ENCODING)
        {
            headers
                .entry(CONTENT_LENGTH)
                .or_insert_with(|| HeaderValue::from(length));
        }
        *response.body_mut() = Body::Empty;
    }
    let is_event_stream = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if is_event_stream && matches!(response.body(), Body::Stream(_)) {
        record.stream = Some(context.ledger.metrics.stream());
    }
    // Without chunks, the content of an HTTP/1.0 answer may end with the connection.
    let reset = (version == Version::HTTP_10).then(|| context.link.clone());
    let broken = match reset {
        Some(link) => Broken::Reset(link),
        None if is_grpc && version == Version::HTTP_2 && grpc::is_grpc(response.headers()) => Broken::Told,
        None => Broken::Error,
    };
    let in_pieces = version == Version::HTTP_2;
    response.map(|body| Outgoing::new(body, record, in_pieces, broken))
}

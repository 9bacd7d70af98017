//! THE mapping from failures to answers: status, a body as Dify writes its errors, and the fields that say
//! who failed and how (RFC 9209, RFC 9211). Who speaks gRPC gets the same as a `grpc-status`.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};

use crate::types::grpc;
use crate::types::outcome::CacheOutcome;
use crate::types::{Body, Failure, FailureKind};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What is said for one kind of failure.
struct Answer {
    status: u16,
    /// The `code` of the body.
    code: &'static str,
    /// The `error` of RFC 9209 section 2.3.
    error: &'static str,
    /// Seconds after which trying again makes sense.
    retry_after: Option<u16>,
}

fn answer(kind: FailureKind) -> Answer {
    use FailureKind::*;
    let (status, code, error, retry_after) = match kind {
        Malformed => (400, "bad_request", "http_request_error", None),
        UnsupportedMethod => (501, "not_implemented", "http_request_denied", None),
        UriTooLong => (414, "request_uri_too_large", "http_request_error", None),
        HeadersTooLarge => (431, "request_header_fields_too_large", "http_request_error", None),
        BodyTooLarge => (413, "request_entity_too_large", "http_request_error", None),
        RequestTimeout => (408, "request_timeout", "http_request_error", None),
        TooManyConnections => (429, "too_many_requests", "http_request_denied", Some(5)),
        TooManyUnknown => (429, "too_many_requests", "http_request_denied", Some(1)),
        ClientGone => (499, "client_closed_request", "http_request_error", None),
        NoRoute => (404, "not_found", "destination_not_found", None),
        OnlyIfCached => (504, "gateway_timeout", "proxy_internal_response", None),
        Overloaded => (503, "service_unavailable", "connection_limit_reached", Some(1)),
        NoReplica => (503, "service_unavailable", "destination_unavailable", Some(2)),
        Fenced | OwnerGone => (503, "service_unavailable", "destination_unavailable", Some(2)),
        Draining => (503, "service_unavailable", "proxy_internal_response", Some(5)),
        ConnectFailed => (502, "bad_gateway", "connection_refused", None),
        ConnectTimeout => (504, "gateway_timeout", "connection_timeout", None),
        UpstreamTimeout => (504, "gateway_timeout", "http_response_timeout", None),
        UpstreamReset => (502, "bad_gateway", "connection_terminated", None),
    };
    Answer {
        status,
        code,
        error,
        retry_after,
    }
}

/// The status that answers a failure of `kind`.
pub fn status(kind: FailureKind) -> StatusCode {
    StatusCode::from_u16(answer(kind).status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The `grpc-status` for a failure of `kind`.
fn grpc_status(kind: FailureKind) -> grpc::Status {
    use FailureKind::*;
    match kind {
        Malformed | UriTooLong | HeadersTooLarge => grpc::Status::INTERNAL,
        BodyTooLarge | TooManyConnections | TooManyUnknown => grpc::Status::RESOURCE_EXHAUSTED,
        UnsupportedMethod | NoRoute => grpc::Status::UNIMPLEMENTED,
        RequestTimeout | ConnectTimeout | UpstreamTimeout => grpc::Status::DEADLINE_EXCEEDED,
        ClientGone => grpc::Status::CANCELLED,
        OnlyIfCached | Overloaded | NoReplica | Fenced | OwnerGone | Draining | ConnectFailed
        | UpstreamReset => grpc::Status::UNAVAILABLE,
    }
}

/// The answer to a gRPC call that failed: nothing but a head (`Trailers-Only`). Its HTTP status is 200, or clients
/// would look no further.
pub(super) fn grpc_response(failure: &Failure) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    say_who_failed(headers, failure, &answer(failure.kind));
    grpc_status(failure.kind).write(&failure.detail, headers);
    response
}

/// The trailers of an answer to a gRPC call that broke off.
pub(super) fn grpc_trailers(failure: &Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    grpc_status(failure.kind).write(&failure.detail, &mut trailers);
    trailers
}

/// The answer to a request that failed: `{"code", "message", "status"}` in JSON, as Dify says it.
pub fn failure_response(failure: &Failure) -> Response<Body> {
    let answer = answer(failure.kind);
    let mut response = Response::new(Body::Full(json_body(&answer, &failure.detail)));
    *response.status_mut() = status(failure.kind);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    say_who_failed(headers, failure, &answer);
    response
}

fn say_who_failed(headers: &mut HeaderMap, failure: &Failure, answer: &Answer) {
    if let Ok(value) = HeaderValue::try_from(proxy_status(failure, answer)) {
        headers.insert(PROXY_STATUS, value);
    }
    if let Ok(value) = HeaderValue::try_from(cache_status(failure, answer.code)) {
        headers.insert(CACHE_STATUS, value);
    }
    if let Some(seconds) = failure.retry_after.or(answer.retry_after) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// The same as bytes, for a peer whose request is not even read.
pub(super) fn failure_bytes(failure: &Failure) -> Bytes {
    let answer = answer(failure.kind);
    let body = json_body(&answer, &failure.detail);
    let mut text = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\
         Proxy-Status: {}\r\n",
        status(failure.kind),
        body.len(),
        proxy_status(failure, &answer),
    );
    if let Some(seconds) = answer.retry_after {
        text.push_str(&format!("Retry-After: {seconds}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&body);
    bytes.into()
}

fn json_body(answer: &Answer, detail: &str) -> Bytes {
    let text = serde_json::Value::from(detail);
    format!(
        "{{\"code\": \"{}\", \"message\": {text}, \"status\": {}}}\n",
        answer.code, answer.status
    )
    .into()
}

/// Who failed and how; where a cluster of the upstream is missing also why (`details`, RFC 9209 section 2.1.5).
fn proxy_status(failure: &Failure, answer: &Answer) -> String {
    let mut text = format!("dify-edge; error={}", answer.error);
    if matches!(failure.kind, FailureKind::Fenced | FailureKind::OwnerGone) {
        text.push_str("; details=");
        push_string(&mut text, &failure.detail);
    }
    text
}

/// A String of structured fields (RFC 8941 section 3.3.3); what it cannot have becomes `?`.
fn push_string(field: &mut String, text: &str) {
    field.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => field.extend(['\\', c]),
            ' '..='~' => field.push(c),
            _ => field.push('?'),
        }
    }
    field.push('"');
}

fn cache_status(failure: &Failure, code: &str) -> String {
    match failure
        .outcome
        .map_or(CacheOutcome::None, |outcome| outcome.cache)
    {
        CacheOutcome::None => format!("dify-edge; detail={code}"),
        CacheOutcome::Bypass => "dify-edge; fwd=bypass".into(),
        CacheOutcome::Collapsed => "dify-edge; fwd=miss; collapsed".into(),
        CacheOutcome::Miss | CacheOutcome::Stored => "dify-edge; fwd=miss".into(),
        CacheOutcome::Hit | CacheOutcome::Stale => "dify-edge; hit".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::*;
    use http_body_util::BodyExt;

    const ALL: [(FailureKind, u16); 20] = [
        (Malformed, 400),
        (UnsupportedMethod, 501),
        (UriTooLong, 414),
        (HeadersTooLarge, 431),
        (BodyTooLarge, 413),
        (RequestTimeout, 408),
        (TooManyConnections, 429),
        (TooManyUnknown, 429),
        (ClientGone, 499),
        (NoRoute, 404),
        (OnlyIfCached, 504),
        (Overloaded, 503),
        (NoReplica, 503),
        (Fenced, 503),
        (OwnerGone, 503),
        (Draining, 503),
        (ConnectFailed, 502),
        (ConnectTimeout, 504),
        (UpstreamTimeout, 504),
        (UpstreamReset, 502),
    ];

    #[tokio::test]
    async fn every_failure_has_the_status_that_its_documentation_says_and_a_dify_shaped_body() {
        for (kind, code) in ALL {
            let response = failure_response(&Failure::new(kind, "a \"quoted\" detail\n"));
            assert_eq!(response.status().as_u16(), code, "{kind:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                matches!(code, 503 | 429),
                "{kind:?}"
            );
            let proxy_status = response.headers()[PROXY_STATUS].to_str().unwrap();
            assert!(proxy_status.starts_with("dify-edge; error="), "{proxy_status}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.ends_with(b"}\n"));
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["status"], code);
            assert_eq!(json["message"], "a \"quoted\" detail\n");
            assert_eq!(json.as_object().unwrap().len(), 3);
        }
    }

    #[test]
    fn what_keeps_a_request_from_its_cluster_is_said_for_programs_too() {
        let field = |kind| {
            let failure = Failure::new(kind, "a \"task\" in C:\\\u{e9}\n");
            let response = failure_response(&failure);
            let value = response.headers()[PROXY_STATUS].to_str().unwrap().to_owned();
            let bytes = failure_bytes(&failure);
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(text.contains(&format!("\r\nProxy-Status: {value}\r\n")), "{text}");
            value
        };
        let said = "dify-edge; error=destination_unavailable; details=\"a \\\"task\\\" in C:\\\\??\"";
        for kind in [Fenced, OwnerGone] {
            assert_eq!(field(kind), said);
        }
        assert_eq!(field(NoReplica), "dify-edge; error=destination_unavailable");
    }

    #[test]
    fn who_speaks_grpc_gets_every_failure_as_a_grpc_status() {
        for (kind, code) in ALL {
            let failure = Failure::new(kind, "100 % gone\n");
            let response = grpc_response(&failure);
            let expected = match code {
                400 | 414 | 431 => "13",
                413 | 429 => "8",
                404 | 501 => "12",
                408 => "4",
                504 if kind != OnlyIfCached => "4",
                499 => "1",
                _ => "14",
            };
            let (headers, trailers) = (response.headers(), grpc_trailers(&failure));
            assert_eq!(
                (response.status(), response.body().is_empty()),
                (StatusCode::OK, true)
            );
            assert_eq!(headers[CONTENT_TYPE], "application/grpc");
            for fields in [headers, &trailers] {
                assert_eq!(fields["grpc-status"], expected, "{kind:?}");
                assert_eq!(fields["grpc-message"], "100 %25 gone%0A");
            }
            assert_eq!(trailers.len(), 2);
            let plain = failure_response(&failure);
            for name in [PROXY_STATUS, CACHE_STATUS, RETRY_AFTER] {
                assert_eq!(headers.get(&name), plain.headers().get(&name), "{kind:?}");
            }
        }
    }

    #[test]
    fn an_answer_as_bytes_says_the_same() {
        let bytes = failure_bytes(&Failure::new(TooManyConnections, "too many"));
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{text}");
        assert!(text.contains("\r\nConnection: close\r\n") && text.contains("\r\nRetry-After: 5\r\n"));
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(text.contains(&format!("Content-Length: {}\r\n", body.len())));
    }
}

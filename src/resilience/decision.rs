//! Whether a failed attempt may be made again: a pure function.
//!
//! It knows nothing of replicas or time: `service` sees to the deadline and to whether the body is still there.

use http::header::RETRY_AFTER;
use http::{Method, Response, StatusCode};

use crate::types::request::{FailedAttempt, FetchHead};
use crate::types::{Body, FailureKind};

/// Why an attempt is made again; the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    ConnectFailed,
    ConnectTimeout,
    Reset,
    ReplicaUnhealthy,
    GatewayError,
}

impl Reason {
    pub(super) const ALL: [Self; 5] = [
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::Reset,
        Self::ReplicaUnhealthy,
        Self::GatewayError,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::ReplicaUnhealthy => "replica_unhealthy",
            Self::GatewayError => "gateway_error",
        }
    }
}

/// Why an attempt that `failed` may be followed by another; `None` when it may not.
///
/// A connection that broke before an answer is tried again when nothing of the request was sent, or when the
/// method is safe (RFC 9110 section 9.2.2). A write of which a byte was sent is never sent again: it may have
/// been carried out. A time-out is not tried again either: it has used up the time, and the work may go on.
/// An attempt that was ended before that, because its replica is unhealthy, has left time for another.
pub(super) fn reason_to_retry(failed: &FailedAttempt, safe: bool) -> Option<Reason> {
    let reason = match failed.failure.kind {
        _ if failed.replica_unhealthy => Reason::ReplicaUnhealthy,
        FailureKind::ConnectFailed => Reason::ConnectFailed,
        FailureKind::ConnectTimeout => Reason::ConnectTimeout,
        FailureKind::UpstreamReset => Reason::Reset,
        _ => return None,
    };
    (safe || !failed.failure.sent).then_some(reason)
}

/// Why another replica may be asked what this one answered; `None` when the answer stands.
///
/// 502, 503 and 504 come from a server that is overloaded, starting or going down, or from one before it; dify-api
/// itself speaks of its own faults with 500 and 4xx. One replica of several says so while the others serve, and who
/// reads a page need not see it. It is done for GET and HEAD alone: of anything else such an answer may come after the
/// work was begun. An answer with `Retry-After` stands: who wrote it knows when it makes sense to ask again, and that
/// is not now.
pub(super) fn reason_to_ask_another(answer: &Response<Body>, fetch: &FetchHead) -> Option<Reason> {
    let is_gateway_error = matches!(
        answer.status(),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    );
    let is_final = answer.headers().contains_key(RETRY_AFTER);
    (is_gateway_error && !is_final && is_read(&fetch.parts.method)).then_some(Reason::GatewayError)
}

/// Whether a method only reads.
pub(super) fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Failure;

    #[test]
    fn only_what_cannot_do_harm_is_tried_again() {
        use FailureKind::*;
        let table = [
            (ConnectFailed, false, false, Some(Reason::ConnectFailed)),
            (ConnectTimeout, false, false, Some(Reason::ConnectTimeout)),
            (UpstreamReset, false, false, Some(Reason::Reset)),
            (UpstreamReset, true, false, None),
            (UpstreamReset, true, true, Some(Reason::Reset)),
            (UpstreamTimeout, true, true, None),
            (UpstreamTimeout, false, true, None),
            (Overloaded, false, true, None),
            (NoReplica, false, true, None),
            (ClientGone, false, true, None),
            (BodyTooLarge, true, true, None),
        ];
        for (kind, sent, safe, expected) in table {
            for replica_unhealthy in [false, true] {
                let mut failure = Failure::new(kind, "");
                failure.sent = sent;
                let failed = FailedAttempt {
                    failure,
                    replica_unhealthy,
                };
                let expected = match replica_unhealthy {
                    true => (safe || !sent).then_some(Reason::ReplicaUnhealthy),
                    false => expected,
                };
                assert_eq!(reason_to_retry(&failed, safe), expected, "{failed:?} {safe}");
            }
        }
    }
}

//! Whether a failed attempt may be made again: a pure function.
//!
//! It knows nothing of replicas or time: `service` sees to the deadline and to whether the body is still there.

use crate::types::FailureKind;
use crate::types::request::FailedAttempt;

/// Attempts of one fetch.
pub(super) const ATTEMPTS: u32 = 3;

/// Why an attempt is made again; the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    ConnectFailed,
    ConnectTimeout,
    Reset,
    ReplicaUnhealthy,
}

impl Reason {
    pub(super) const ALL: [Self; 4] = [
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::Reset,
        Self::ReplicaUnhealthy,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::ReplicaUnhealthy => "replica_unhealthy",
        }
    }
}

/// Why attempt `number` (from 0) that `failed` may be followed by another; `None` when it may not.
///
/// A connection that broke before an answer is tried again when nothing of the request was sent, or when the
/// method is safe (RFC 9110 section 9.2.2). A write of which a byte was sent is never sent again: it may have
/// been carried out. A time-out is not tried again either: it has used up the time, and the work may go on.
/// An attempt that was ended before that, because its replica is unhealthy, has left time for another.
pub(super) fn reason_to_retry(failed: &FailedAttempt, safe: bool, number: u32) -> Option<Reason> {
    let reason = match failed.failure.kind {
        _ if failed.replica_unhealthy => Reason::ReplicaUnhealthy,
        FailureKind::ConnectFailed => Reason::ConnectFailed,
        FailureKind::ConnectTimeout => Reason::ConnectTimeout,
        FailureKind::UpstreamReset => Reason::Reset,
        _ => return None,
    };
    (number + 1 < ATTEMPTS && (safe || !failed.failure.sent)).then_some(reason)
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
                    replica: Some(0),
                    replica_unhealthy,
                };
                let expected = match replica_unhealthy {
                    true => (safe || !sent).then_some(Reason::ReplicaUnhealthy),
                    false => expected,
                };
                for (number, expected) in [(0, expected), (1, expected), (2, None)] {
                    let reason = reason_to_retry(&failed, safe, number);
                    assert_eq!(reason, expected, "{failed:?} {safe} {number}");
                }
            }
        }
    }
}

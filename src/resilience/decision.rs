//! Whether a failed attempt may be made again: a pure function.
//!
//! It knows nothing of replicas or time: `service` sees to the deadline and to whether the body is still there.

use crate::types::{Failure, FailureKind};

/// Attempts of one fetch.
pub(super) const ATTEMPTS: u32 = 3;

/// Why an attempt is made again; the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    ConnectFailed,
    ConnectTimeout,
    Reset,
}

impl Reason {
    pub(super) const ALL: [Self; 3] = [Self::ConnectFailed, Self::ConnectTimeout, Self::Reset];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
        }
    }
}

/// Why attempt `number` (from 0) that ended in `failure` may be followed by another; `None` when it may not.
///
/// A connection that broke before an answer is tried again when nothing of the request was sent, or when the
/// method is safe (RFC 9110 section 9.2.2). A write of which a byte was sent is never sent again: it may have
/// been carried out. A time-out is not tried again either: it has used up the time, and the work may go on.
pub(super) fn reason_to_retry(failure: &Failure, safe: bool, number: u32) -> Option<Reason> {
    let reason = match failure.kind {
        FailureKind::ConnectFailed => Reason::ConnectFailed,
        FailureKind::ConnectTimeout => Reason::ConnectTimeout,
        FailureKind::UpstreamReset => Reason::Reset,
        _ => return None,
    };
    (number + 1 < ATTEMPTS && (safe || !failure.sent)).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut failure = Failure::new(kind, "");
            failure.sent = sent;
            assert_eq!(
                reason_to_retry(&failure, safe, 0),
                expected,
                "{kind:?} {sent} {safe}"
            );
            assert_eq!(
                reason_to_retry(&failure, safe, 1),
                expected,
                "{kind:?} {sent} {safe}"
            );
            assert_eq!(reason_to_retry(&failure, safe, 2), None, "{kind:?} {sent} {safe}");
        }
    }
}

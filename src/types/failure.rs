//! What can go wrong on the way, as one closed vocabulary that `wire/respond.rs` alone turns into answers.

use std::borrow::Cow;

use super::outcome::Outcome;

/// Who a failure is put down to (RFC 9209 tells a client apart from the next hop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The client sent something that cannot be served, or left.
    Client,
    /// This proxy would not or could not go on.
    Edge,
    /// The upstream did not answer as it should.
    Upstream,
}

/// The closed list of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The request can be read in two ways or not at all (400).
    Malformed,
    /// The method is not one that is served (501).
    UnsupportedMethod,
    /// The request target is longer than allowed (414).
    UriTooLong,
    /// Too many header fields, or too many bytes of them (431).
    HeadersTooLarge,
    /// The body is longer than its route class allows (413).
    BodyTooLarge,
    /// Head or body came too slowly (408).
    RequestTimeout,
    /// The peer holds too many connections (429).
    TooManyConnections,
    /// The client asked for too many things that nobody knows (429).
    TooManyUnknown,
    /// The client went away before its request was whole; nobody reads the answer (499 in logs).
    ClientGone,
    /// No upstream is configured for the path (404).
    NoRoute,
    /// `Cache-Control: only-if-cached` and nothing is stored (504, RFC 9111 section 5.2.1.7).
    OnlyIfCached,
    /// Every slot of the replicas is taken and the wait for one ran out (503).
    Overloaded,
    /// No replica can be tried (503).
    NoReplica,
    /// It is not known which cluster the write belongs to (503).
    Fenced,
    /// The cluster that has the work which the request is about is gone (503).
    OwnerGone,
    /// The proxy is going down and takes no new work (503).
    Draining,
    /// No connection could be made (502).
    ConnectFailed,
    /// Making the connection took too long (504).
    ConnectTimeout,
    /// The answer, or its next bytes, took too long (504).
    UpstreamTimeout,
    /// The connection broke, or what came back is not HTTP (502).
    UpstreamReset,
}

impl FailureKind {
    /// Who it is put down to.
    pub fn origin(self) -> Origin {
        use FailureKind::*;
        match self {
            Malformed | UnsupportedMethod | UriTooLong | HeadersTooLarge | BodyTooLarge | RequestTimeout
            | TooManyConnections | TooManyUnknown | ClientGone => Origin::Client,
            NoRoute | OnlyIfCached | Overloaded | NoReplica | Fenced | OwnerGone | Draining => Origin::Edge,
            ConnectFailed | ConnectTimeout | UpstreamTimeout | UpstreamReset => Origin::Upstream,
        }
    }
}

/// A request that came to no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// Which of the known failures it is.
    pub kind: FailureKind,
    /// One sentence for the client and the log; names the limit or the field, never a credential.
    pub detail: Cow<'static, str>,
    /// Whether bytes of the request may have reached an upstream: then a write must not be sent again,
    /// and may take effect although no answer came.
    pub sent: bool,
    /// Seconds after which trying again makes sense, where that is known better than from `kind`.
    pub retry_after: Option<u16>,
    /// What was known about the request when it failed; for metrics and the access log.
    pub outcome: Option<Outcome>,
}

impl Failure {
    /// A failure of `kind` before anything was sent upstream.
    pub fn new(kind: FailureKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            sent: false,
            retry_after: None,
            outcome: None,
        }
    }

    /// The same, with bytes of the request possibly at the upstream.
    #[must_use]
    pub fn sent(mut self) -> Self {
        self.sent = true;
        self
    }
}

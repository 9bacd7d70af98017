//! The `Cache-Status` field (RFC 9211): what the cache did with this request, for the client's eyes.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::key::Key;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request was forwarded (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// The route, or the request, is not one for this cache.
    Bypass,
    /// The method is not one that is answered from memory.
    Method,
    /// Nothing is stored.
    UriMiss,
    /// What is stored is too old, or was ended by a write.
    Stale,
    /// The request's own directives ask for it.
    Request,
}

impl Forward {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// One member of the list.
#[derive(Debug, Default)]
pub(super) struct CacheStatus<'a> {
    /// Answered from memory.
    pub hit: bool,
    /// Forwarded, and why.
    pub forward: Option<Forward>,
    /// Status of the answer that was fetched.
    pub forward_status: Option<u16>,
    /// The answer is now stored.
    pub stored: bool,
    /// The answer came by another request's fetch.
    pub collapsed: bool,
    /// Freshness that is left, in seconds; negative when stale.
    pub ttl: Option<i64>,
    /// The key.
    pub key: Option<&'a Key>,
    /// One word more.
    pub detail: Option<&'static str>,
}

impl<'a> CacheStatus<'a> {
    /// The member of an answer from memory.
    pub(super) fn hit(ttl: i64, key: &'a Key, detail: &'static str) -> Self {
        Self {
            hit: true,
            ttl: Some(ttl),
            key: Some(key),
            detail: Some(detail),
            ..Self::default()
        }
    }

    /// Adds this cache's member behind those of caches nearer to the origin.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(96);
        self.push(&mut text);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(CACHE_STATUS, value);
        }
    }

    /// Appends the member to `text`.
    pub(super) fn push(&self, text: &mut String) {
        text.push_str("dify-edge");
        if self.hit {
            text.push_str("; hit");
        }
        if let Some(forward) = self.forward {
            text.push_str("; fwd=");
            text.push_str(forward.as_str());
        }
        // Writing into a String cannot fail.
        if let Some(status) = self.forward_status {
            let _ = write!(text, "; fwd-status={status}");
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        if let Some(key) = self.key {
            text.push_str("; key=\"");
            text.extend(key.prefix().iter().map(|b| char::from(*b)));
            text.push('"');
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            text.push_str(detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_written_as_rfc_9211_has_it() {
        let key = Key([0xab; 16]);
        let mut headers = HeaderMap::new();
        CacheStatus {
            hit: true,
            ttl: Some(57),
            key: Some(&key),
            ..Default::default()
        }
        .write(&mut headers);
        CacheStatus {
            forward: Some(Forward::UriMiss),
            forward_status: Some(200),
            stored: true,
            collapsed: true,
            detail: Some("metadata"),
            ..Default::default()
        }
        .write(&mut headers);
        let members: Vec<_> = headers.get_all("cache-status").iter().collect();
        assert_eq!(members[0], "dify-edge; hit; ttl=57; key=\"abababab\"");
        assert_eq!(
            members[1],
            "dify-edge; fwd=uri-miss; fwd-status=200; stored; collapsed; detail=metadata"
        );
    }
}

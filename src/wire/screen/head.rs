//! Judges the head of an HTTP/1 request line by line, before anything else reads it (RFC 9112).
//!
//! Stricter than a recipient has to be: whatever two implementations could read in two ways is refused, and
//! so is whatever goes beyond a limit. `framer` calls it; `limits` has the rules shared with HTTP/2.

use std::ops::Range;

use crate::config::LimitsConfig;
use crate::types::{Failure, FailureKind};
use crate::wire::limits;

/// Empty lines that are tolerated before a request line (RFC 9112 section 2.2).
const EMPTY_LINES: u8 = 2;
/// Method, version and spaces in a request line, beside the target.
const AROUND_TARGET: usize = 64;

/// The limits on a head, as numbers.
#[derive(Debug, Clone, Copy)]
pub(in crate::wire) struct HeadLimits {
    /// Bytes of the request target.
    pub(in crate::wire) target: usize,
    /// Bytes of the header section.
    pub(in crate::wire) section: usize,
    /// Header fields.
    pub(in crate::wire) fields: usize,
}

impl HeadLimits {
    pub(in crate::wire) fn new(limits: &LimitsConfig) -> Self {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        Self {
            // No longer target fits into `http::Uri`.
            target: bytes(limits.uri_bytes.0).min(usize::from(u16::MAX) - 1),
            section: bytes(limits.header_bytes.0),
            fields: limits.header_count,
        }
    }
}

/// How the end of a request's body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    Sized(u64),
    Chunked,
}

/// A whole, good head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    /// Its length in bytes, with the empty line at its end.
    pub(super) len: usize,
    /// What follows it.
    pub(super) framing: Framing,
    /// Whether it asks for another protocol.
    pub(super) upgrade: bool,
}

/// A head of which some lines are here. All positions count from its first byte.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the current line begins.
    line: usize,
    /// No line feed from `line` up to here.
    seen: usize,
    empty_lines: u8,
    /// Where the header section begins; set by the request line.
    section: Option<usize>,
    http_11: bool,
    authority: Option<Range<usize>>,
    host: Option<Range<usize>>,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

/// Judges `bytes` as one whole head.
pub(in crate::wire) fn check_head(bytes: &[u8], limits: &LimitsConfig) -> Result<(), Failure> {
    match Head::default().scan(bytes, &HeadLimits::new(limits))? {
        Some(done) if done.len == bytes.len() => Ok(()),
        _ => Err(malformed("the request head is not one whole head")),
    }
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::new(FailureKind::Malformed, detail)
}

impl Head {
    /// Goes on with `bytes`, which begin with the head's first byte. `None`: more is needed.
    pub(super) fn scan(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<Done>, Failure> {
        if let Some(first) = bytes.first()
            && !limits::is_token(*first)
            && !matches!(first, b'\r' | b'\n')
        {
            return Err(malformed("the request line does not begin with a method"));
        }
        while let Some(offset) = memchr::memchr(b'\n', &bytes[self.seen..]) {
            let end = self.seen + offset;
            self.check_size(end + 1, limits)?;
            let start = self.line;
            let Some(line) = bytes[start..end].strip_suffix(b"\r") else {
                return Err(malformed(
                    "a line of the request head ends without a carriage return",
                ));
            };
            self.line = end + 1;
            self.seen = self.line;
            match (self.section.is_some(), line.is_empty()) {
                (true, true) => return self.finish(bytes).map(Some),
                (true, false) => self.field(line, start, limits)?,
                (false, true) if self.empty_lines < EMPTY_LINES => self.empty_lines += 1,
                (false, true) => return Err(malformed("too many empty lines before a request")),
                (false, false) => self.request_line(line, start, limits)?,
            }
        }
        self.seen = bytes.len();
        self.check_size(self.seen, limits)?;
        Ok(None)
    }

    fn check_size(&self, end: usize, limits: &HeadLimits) -> Result<(), Failure> {
        match self.section {
            Some(start) if end - start > limits.section => Err(limits::section_too_long(limits)),
            None if end - self.line > limits.target.saturating_add(AROUND_TARGET) => {
                Err(limits::target_too_long(limits))
            }
            _ => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8], start: usize, limits: &HeadLimits) -> Result<(), Failure> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("the request line is not `method target version`"));
        };
        limits::check_method(method)?;
        if target.len() > limits.target {
            return Err(limits::target_too_long(limits));
        }
        self.http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(malformed("the HTTP version is neither HTTP/1.1 nor HTTP/1.0")),
        };
        self.authority = limits::check_target(method, target)?.map(|within| {
            let offset = start + method.len() + 1;
            offset + within.start..offset + within.end
        });
        self.section = Some(self.line);
        Ok(())
    }

    fn field(&mut self, line: &[u8], start: usize, limits: &HeadLimits) -> Result<(), Failure> {
        self.fields += 1;
        if self.fields > limits.fields {
            return Err(limits::too_many_fields(limits));
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(malformed("a header field is folded over several lines"));
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return Err(malformed("a header line has no colon"));
        };
        let name = &line[..colon];
        if name.is_empty() || !name.iter().all(|byte| limits::is_token(*byte)) {
            return Err(malformed(if name.ends_with(b" ") || name.ends_with(b"\t") {
                "whitespace stands between a header name and its colon"
            } else {
                "a header name has a character that is not allowed"
            }));
        }
        let named = || String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
        let padded = &line[colon + 1..];
        if !padded.iter().all(|byte| limits::is_field_value(*byte)) {
            return Err(malformed(format!(
                "the value of `{}` has a control character",
                named()
            )));
        }
        let value = padded.trim_ascii();
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // Only the framing fields matter here, and their names differ in length.
        match name.len() {
            4 if is("host") => {
                let from = start + colon + 1 + (padded.len() - padded.trim_ascii_start().len());
                if self.host.replace(from..from + value.len()).is_some() {
                    return Err(limits::repeated("Host"));
                }
            }
            7 if is("upgrade") => self.upgrade = true,
            14 if is("content-length") => {
                let length = limits::content_length(value)?;
                if self.length.replace(length).is_some() {
                    return Err(limits::repeated("Content-Length"));
                }
            }
            17 if is("transfer-encoding") => {
                if self.chunked {
                    return Err(limits::repeated("Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(malformed("`Transfer-Encoding` is something else than `chunked`"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&self, bytes: &[u8]) -> Result<Done, Failure> {
        let host = self.host.clone().map(|range| &bytes[range]);
        match (host, self.authority.clone()) {
            (None, _) if self.http_11 => return Err(malformed("an HTTP/1.1 request needs a `Host` field")),
            // Empty is what a client sends whose target has no authority (RFC 9112 section 3.2).
            (Some(host), None) if !host.is_empty() && !limits::is_host(host) => {
                return Err(malformed("`Host` is not a host name with an optional port"));
            }
            (Some(host), Some(authority)) if !bytes[authority.clone()].eq_ignore_ascii_case(host) => {
                return Err(malformed(
                    "`Host` differs from the authority of the request target",
                ));
            }
            _ => {}
        }
        let framing = match (self.chunked, self.length) {
            (true, Some(_)) => {
                return Err(malformed(
                    "`Transfer-Encoding` and `Content-Length` exclude each other",
                ));
            }
            (true, None) if !self.http_11 => {
                return Err(malformed("`Transfer-Encoding` does not exist in HTTP/1.0"));
            }
            (true, None) => Framing::Chunked,
            (false, Some(length)) if length > 0 => Framing::Sized(length),
            (false, _) => Framing::Nothing,
        };
        Ok(Done {
            len: self.line,
            framing,
            upgrade: self.upgrade && self.http_11,
        })
    }
}

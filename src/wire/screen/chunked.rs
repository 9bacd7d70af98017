//! Checks the syntax of a chunked body as it passes, byte by byte outside the data (RFC 9112 section 7.1).
//!
//! A pure state machine that holds nothing back: it says where the body ends, or where it stops making sense.

use super::head::HeadLimits;
use crate::types::{Failure, FailureKind};
use crate::wire::limits;

/// Hexadecimal digits of a chunk's size: what fits into 60 bits.
const SIZE_DIGITS: u8 = 15;
/// Bytes of chunk extensions in one body; nobody uses them for good.
const EXTENSION_BYTES: usize = 4096;
/// Bytes of the trailer section.
const TRAILER_BYTES: usize = 8192;

#[derive(Debug, Clone, Copy)]
enum At {
    Size { digits: u8 },
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    EndLineFeed,
}

/// Where in a chunked body the stream is.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    missing: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_limit: usize,
    fields: usize,
    fields_limit: usize,
}

impl Chunks {
    pub(super) fn new(limits: &HeadLimits) -> Self {
        Self {
            at: At::Size { digits: 0 },
            missing: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            trailer_limit: limits.section.min(TRAILER_BYTES),
            fields: 0,
            fields_limit: limits.fields,
        }
    }

    /// Goes on with `bytes`. Returns how many of them belong to the body and are good, and whether the body
    /// is at its end or the next byte is wrong.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> (usize, Result<bool, Failure>) {
        let mut at = 0;
        while at < bytes.len() {
            if let At::Data = self.at {
                let rest = bytes.len() - at;
                let here = usize::try_from(self.missing).unwrap_or(usize::MAX).min(rest);
                self.missing -= here as u64;
                at += here;
                if self.missing == 0 {
                    self.at = At::DataReturn;
                }
                continue;
            }
            match self.step(bytes[at]) {
                Ok(end) => {
                    at += 1;
                    if end {
                        return (at, Ok(true));
                    }
                }
                Err((kind, detail)) => return (at, Err(Failure::new(kind, detail))),
            }
        }
        (at, Ok(false))
    }

    fn step(&mut self, byte: u8) -> Result<bool, (FailureKind, &'static str)> {
        let wrong = |detail| Err((FailureKind::Malformed, detail));
        self.at = match (self.at, byte) {
            (At::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS {
                    return wrong("the size of a chunk is too large");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.missing = self.missing << 4 | u64::from(digit);
                At::Size { digits: digits + 1 }
            }
            (At::Size { digits: 1.. }, b'\r') | (At::Extension, b'\r') => At::SizeLineFeed,
            (At::Size { digits: 1.. }, b';') => At::Extension,
            (At::Size { .. }, _) => return wrong("the size of a chunk is not a hexadecimal number"),
            (At::Extension, _) if limits::is_field_value(byte) => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES {
                    return wrong("the chunk extensions are too long");
                }
                At::Extension
            }
            (At::Extension, _) => return wrong("a chunk extension has a control character"),
            (At::SizeLineFeed, b'\n') if self.missing == 0 => At::TrailerStart,
            (At::SizeLineFeed, b'\n') => At::Data,
            (At::DataReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::Size { digits: 0 },
            (At::DataReturn | At::DataLineFeed, _) => return wrong("a chunk is longer than its size says"),
            (At::TrailerStart, b'\r') => At::EndLineFeed,
            (At::EndLineFeed, b'\n') => return Ok(true),
            (At::TrailerStart, _) if limits::is_token(byte) => {
                self.fields += 1;
                if self.fields > self.fields_limit {
                    return Err((FailureKind::HeadersTooLarge, "there are too many trailer fields"));
                }
                At::TrailerName
            }
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerName, _) if limits::is_token(byte) => At::TrailerName,
            (At::TrailerValue, b'\r') => At::TrailerLineFeed,
            (At::TrailerValue, _) if limits::is_field_value(byte) => At::TrailerValue,
            (At::TrailerLineFeed, b'\n') => At::TrailerStart,
            (At::SizeLineFeed | At::TrailerLineFeed | At::EndLineFeed, _) => {
                return wrong("a carriage return stands alone in a chunked body");
            }
            (At::TrailerStart | At::TrailerName | At::TrailerValue, _) => {
                return wrong("a trailer field is not well-formed");
            }
            (At::Data, _) => At::Data,
        };
        if let At::TrailerName | At::TrailerValue = self.at {
            self.trailer_bytes += 1;
            if self.trailer_bytes > self.trailer_limit {
                return Err((FailureKind::HeadersTooLarge, "the trailer section is too long"));
            }
        }
        Ok(false)
    }
}

//! What the proxy understands of gRPC: which requests are gRPC, how long they may take, how they ended.
//!
//! A gRPC call is an HTTP/2 request whose outcome is not in the status of the answer but in its trailers, or in its
//! head when nothing else comes (`PROTOCOL-HTTP2.md` of the gRPC project, which all of this is after). Pure: `classify`
//! takes the deadline from here, `routing` the verdict on a replica, `wire` the words for what failed here.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

/// What the media type of a request and its answer begins with.
const MEDIA_TYPE: &[u8] = b"application/grpc";
/// The outcome of a call.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What went wrong, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How long the client waits.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// No call takes longer; what is written can be more than clocks count.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// Digits of a timeout.
const MOST_DIGITS: usize = 8;

/// How a call ended: its `grpc-status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// All is well.
    pub const OK: Self = Self(0);
    /// The caller ended it.
    pub const CANCELLED: Self = Self(1);
    /// Nothing better is known.
    pub const UNKNOWN: Self = Self(2);
    /// The time was over before an answer came.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// Some limit is reached.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// There is no such method.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// Something is broken.
    pub const INTERNAL: Self = Self(13);
    /// The server cannot be reached now.
    pub const UNAVAILABLE: Self = Self(14);
    /// Data are lost.
    pub const DATA_LOSS: Self = Self(15);

    /// The outcome that a head or trailers tell; what is no number from 0 is taken for [`Self::UNKNOWN`].
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        let value = fields.get(GRPC_STATUS)?.as_bytes();
        let plain = (1..=4).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        if !plain {
            return Some(Self::UNKNOWN);
        }
        let digits = value.iter().map(|digit| u16::from(digit - b'0'));
        Some(Self(digits.fold(0, |number, digit| number * 10 + digit)))
    }

    /// The HTTP status that says of a server what this outcome does, where it is the server's fault: 503, 504 or 500.
    /// `None` for what is well, or up to the caller.
    pub fn as_server_error(self) -> Option<http::StatusCode> {
        match self {
            Self::UNAVAILABLE => Some(http::StatusCode::SERVICE_UNAVAILABLE),
            Self::DEADLINE_EXCEEDED => Some(http::StatusCode::GATEWAY_TIMEOUT),
            Self::UNKNOWN | Self::INTERNAL | Self::DATA_LOSS => Some(http::StatusCode::INTERNAL_SERVER_ERROR),
            _ => None,
        }
    }

    /// The two fields that tell of it.
    pub fn write(self, message: &str, fields: &mut HeaderMap) {
        fields.insert(GRPC_STATUS, HeaderValue::from(self.0));
        if let Ok(message) = HeaderValue::try_from(encoded(message)) {
            fields.insert(GRPC_MESSAGE, message);
        }
    }
}

/// Whether a message with these fields is gRPC. gRPC-Web, which HTTP/1.1 can carry, is not.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    let Some(kind) = fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else {
        return false;
    };
    let (Some(start), Some(rest)) = (kind.get(..MEDIA_TYPE.len()), kind.get(MEDIA_TYPE.len()..)) else {
        return false;
    };
    start.eq_ignore_ascii_case(MEDIA_TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// How long the client waits, by `grpc-timeout`. `None` without one, and for one that cannot be read: the server will
/// say what it thinks of it.
pub fn timeout(fields: &HeaderMap) -> Option<Duration> {
    parse_timeout(fields.get(GRPC_TIMEOUT)?.as_bytes()).map(|timeout| timeout.min(LONGEST))
}

/// One to eight digits and a unit.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=MOST_DIGITS).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A message as `grpc-message` has it: everything but visible ASCII and blanks is percent-encoded, and `%` is.
fn encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => text.push_str(&format!("%{byte:02X}")),
            byte => text.push(char::from(byte)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(name: &'static str, value: &str) -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(name, HeaderValue::from_str(value).unwrap());
        fields
    }

    #[test]
    fn grpc_is_told_by_its_media_type_and_grpc_web_is_something_else() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&fields("content-type", kind)), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("00000250u", Some(Duration::from_micros(250))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0S", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("000000250u", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("1 S", None),
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn only_what_the_server_is_to_blame_for_is_a_server_error() {
        let blamed: Vec<(u16, u16)> = (0..=17)
            .filter_map(|code| Some((code, Status(code).as_server_error()?.as_u16())))
            .collect();
        assert_eq!(blamed, [(2, 500), (4, 504), (13, 500), (14, 503), (15, 500)]);
    }

    #[test]
    fn a_status_that_is_no_number_is_unknown() {
        assert_eq!(
            Status::of(&fields("grpc-status", "14")),
            Some(Status::UNAVAILABLE)
        );
        for odd in ["", "x", "-1", "99999", "1 "] {
            assert_eq!(
                Status::of(&fields("grpc-status", odd)),
                Some(Status::UNKNOWN),
                "{odd}"
            );
        }
        assert_eq!(Status::of(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn what_is_read_from_a_timeout_is_what_was_written(number in 0_u32..=99_999_999, unit in "[HMSmun]") {
            let read = parse_timeout(format!("{number}{unit}").as_bytes()).unwrap();
            let nanos: u128 = match unit.as_str() {
                "H" => 3_600_000_000_000,
                "M" => 60_000_000_000,
                "S" => 1_000_000_000,
                "m" => 1_000_000,
                "u" => 1_000,
                _ => 1,
            };
            prop_assert_eq!(read.as_nanos(), u128::from(number) * nanos);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = parse_timeout(&bytes);
        }

        #[test]
        fn a_message_comes_back_from_its_encoding(message in ".*") {
            let mut told = HeaderMap::new();
            Status::UNAVAILABLE.write(&message, &mut told);
            let mut bytes = Vec::new();
            let mut rest = told[GRPC_MESSAGE].as_bytes();
            while let Some((first, others)) = rest.split_first() {
                rest = others;
                if *first == b'%' {
                    let hex = std::str::from_utf8(&rest[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &rest[2..];
                } else {
                    bytes.push(*first);
                }
            }
            prop_assert_eq!(bytes, message.as_bytes());
        }
    }
}

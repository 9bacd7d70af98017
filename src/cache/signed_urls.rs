//! Dify's signed file URLs: `…?timestamp=<seconds>&nonce=<hex>&sign=<base64>`, dead after a configured time.
//!
//! An answer that carries one must not outlive it, so the age of the oldest URL in a body bounds the TTL.

use memchr::memmem;

/// The earliest `timestamp` (Unix seconds) of a signed URL in `body`; `None` without any.
pub(super) fn earliest_timestamp(body: &[u8]) -> Option<u64> {
    memmem::find(body, b"sign=")?;
    memmem::find_iter(body, b"timestamp=")
        .filter_map(|at| {
            let digits = &body[at + "timestamp=".len()..];
            let length = digits.iter().take(20).take_while(|b| b.is_ascii_digit()).count();
            std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_oldest_of_several_urls_counts() {
        let body =
            br#"{"a":"/files/1/file-preview?timestamp=200&nonce=1&sign=A","b":"/x?timestamp=100&sign=B"}"#;
        assert_eq!(earliest_timestamp(body), Some(100));
        assert_eq!(
            earliest_timestamp(b"{\"timestamp\": 5, \"x\": \"timestamp=7\"}"),
            None
        );
        assert_eq!(earliest_timestamp(b"sign=&timestamp="), None);
    }

    proptest! {
        #[test]
        fn any_body_can_be_scanned(prefix in ".{0,40}", suffix in "(timestamp=)?[0-9]{0,30}(&sign=)?.{0,10}") {
            let _ = earliest_timestamp(format!("{prefix}{suffix}").as_bytes());
        }
    }
}

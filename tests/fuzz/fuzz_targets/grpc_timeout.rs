//! A `grpc-timeout` as a client may write it.
#![no_main]

use dify_edge::types::grpc;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(timeout) = grpc::parse_timeout(bytes) else { return };
    // Eight digits of hours at most, in whole nanoseconds at least.
    assert!(timeout.as_secs() <= 99_999_999 * 3600 && (2..=9).contains(&bytes.len()));
});

//! Values that anybody may have put into Redis.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::cache::fuzzing::value(bytes));

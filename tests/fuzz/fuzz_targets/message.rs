//! Messages that anybody may have put on the board.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::cache::fuzzing::message(bytes));

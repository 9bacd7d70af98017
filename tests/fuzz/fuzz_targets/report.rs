//! What a replica says about its load in the head of an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::routing::fuzzing::report(bytes));

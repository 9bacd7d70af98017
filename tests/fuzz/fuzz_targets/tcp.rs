//! What the kernel tells of connections.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::routing::fuzzing::tcp(bytes));

//! An expression of the configuration in the first line, what an exporter shows in the others.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::routing::fuzzing::scrape(bytes));

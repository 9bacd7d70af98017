//! What stands in a path where an id is wanted.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::types::known::read_anything(bytes));

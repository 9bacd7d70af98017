//! The URL of the database.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::guard::fuzzing::database_url(bytes));

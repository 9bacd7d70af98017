//! Answers of Dify's of which the guard learns, cut into pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dify_edge::guard::fuzzing::answer(bytes));

//! See `session_fuzz::hello`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::hello::run(data));

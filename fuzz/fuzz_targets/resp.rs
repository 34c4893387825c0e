//! See `session_fuzz::resp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::resp::run(data));

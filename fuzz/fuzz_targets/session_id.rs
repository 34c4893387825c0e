//! See `session_fuzz::session_id`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::session_id::run(data));

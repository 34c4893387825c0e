//! See `session_fuzz::conversation`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::conversation::run(data));

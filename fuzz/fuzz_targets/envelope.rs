//! See `session_fuzz::envelope`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::envelope::run(data));

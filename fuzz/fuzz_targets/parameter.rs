//! See `session_fuzz::parameter`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::parameter::run(data));

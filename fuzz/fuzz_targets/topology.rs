//! See `session_fuzz::topology`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::topology::run(data));

//! See `session_fuzz::memcached`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| session_fuzz::memcached::run(data));

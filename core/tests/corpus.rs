//! The fuzz targets (`fuzz/`) over their committed corpus, without a fuzzer.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects, clippy::string_slice)]

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!inputs.is_empty(), "{}", folder.display());
    for input in inputs {
        // Shown if the test fails: the input that it failed with.
        println!("{}", input.display());
        run(&fs::read(input).unwrap());
    }
}

#[test]
fn conversation() {
    replay("conversation", fuzz::conversation::run);
}

#[test]
fn envelope() {
    replay("envelope", fuzz::envelope::run);
}

#[test]
fn hello() {
    replay("hello", fuzz::hello::run);
}

#[test]
fn memcached() {
    replay("memcached", fuzz::memcached::run);
}

#[test]
fn parameter() {
    replay("parameter", fuzz::parameter::run);
}

#[test]
fn resp() {
    replay("resp", fuzz::resp::run);
}

#[test]
fn session_der() {
    replay("session_der", fuzz::session_der::run);
}

#[test]
fn session_id() {
    replay("session_id", fuzz::session_id::run);
}

#[test]
fn target() {
    replay("target", fuzz::target::run);
}

#[test]
fn topology() {
    replay("topology", fuzz::topology::run);
}

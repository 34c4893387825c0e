//! Sessions as OpenSSL 3.0 writes them, of servers with an extended master secret and without.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use session_core::session_der::SessionDer;

fn read(name: &str) -> SessionDer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    SessionDer::read(&fs::read(folder.join(name).with_extension("der")).unwrap()).unwrap()
}

#[test]
fn a_session_says_whether_its_master_secret_is_extended() {
    assert!(read("tls12-ems").extended_master_secret);
    assert!(read("tls12-ems-certificate").extended_master_secret);
    assert!(!read("tls12-plain").extended_master_secret);
    assert!(!read("tls12-plain-certificate").extended_master_secret);
    assert!(!read("tls13-alpn").extended_master_secret, "TLS 1.3 has no such thing");
}

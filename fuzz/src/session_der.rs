//! Sessions in DER: what is read is there.

use session_core::session_der::SessionDer;

/// The tags of the fields "flags" and "comp_id".
const FLAGS: u8 = 0xad;
const COMP_ID: u8 = 0xab;

/// A session in DER.
pub fn run(data: &[u8]) {
    let Some(session) = SessionDer::read(data) else { return };
    if session.extended_master_secret {
        assert!(data.contains(&FLAGS), "there are flags");
    }
    if session.compressed {
        assert!(data.contains(&COMP_ID), "there is a method of compression");
    }
    assert_eq!(SessionDer::read(&data[..data.len() - 1]), None, "its end is missing");
    assert_eq!(SessionDer::read(&[data, &[0]].concat()), None, "there is more");
}

//! Sessions in DER: what is read is there.

use session_core::session_der::SessionDer;

/// The tag of the field "flags".
const FLAGS: u8 = 0xad;

/// A session in DER.
pub fn run(data: &[u8]) {
    let Some(session) = SessionDer::read(data) else { return };
    if session.extended_master_secret {
        assert!(data.contains(&FLAGS), "there are flags");
    }
    assert_eq!(SessionDer::read(&data[..data.len() - 1]), None, "its end is missing");
    assert_eq!(SessionDer::read(&[data, &[0]].concat()), None, "there is more");
}

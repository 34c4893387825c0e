//! What a session in DER says of itself that OpenSSL has no function to tell.
//!
//! `SSL_SESSION_ASN1` (ssl/ssl_asn1.c) is the same in OpenSSL 1.1.1 to 4.0, but for fields that came
//! at its end:
//!
//! ```text
//! SEQUENCE {
//!     version INTEGER, ssl_version INTEGER, cipher OCTET STRING, session_id OCTET STRING,
//!     master_key OCTET STRING,
//!     key_arg [0] IMPLICIT OCTET STRING OPTIONAL,
//!     [n] EXPLICIT ... OPTIONAL    -- n from 1 on, ascending
//!                                  -- [11] is "comp_id", an OCTET STRING; [13] is "flags", an INTEGER
//! }
//! ```

use crate::der::{alone, value};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
/// The fields that every session begins with.
const FIRST_FIELDS: [u8; 5] = [INTEGER, INTEGER, OCTET_STRING, OCTET_STRING, OCTET_STRING];

/// `[0] IMPLICIT`, primitive.
const KEY_ARG: u8 = 0x80;
/// `[0] EXPLICIT`: the tag of field n is n above it.
const EXPLICIT: u8 = 0xa0;
/// Tags from 31 on take more than one byte. No session has one.
const LAST_TAG: u8 = EXPLICIT + 30;
const COMP_ID: u8 = EXPLICIT + 11;
const FLAGS: u8 = EXPLICIT + 13;

/// `SSL_SESS_FLAG_EXTMS` (ssl/ssl_local.h).
const FLAG_EXTENDED_MASTER_SECRET: u8 = 1;

/// What a session says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionDer {
    /// Its master secret is an extended one (RFC 7627).
    pub extended_master_secret: bool,
    /// Its records are compressed (RFC 3749). An OpenSSL that cannot do so drops this when it decodes.
    pub compressed: bool,
}

impl SessionDer {
    /// Reads what `i2d_SSL_SESSION()` has written. `None` if it is not that.
    pub fn read(der: &[u8]) -> Option<Self> {
        let mut fields = alone(SEQUENCE, der)?;
        for tag in FIRST_FIELDS {
            (_, fields) = value(tag, fields)?;
        }
        if fields.first() == Some(&KEY_ARG) {
            (_, fields) = value(KEY_ARG, fields)?;
        }
        let mut session = SessionDer::default();
        let mut last = EXPLICIT;
        while let Some(&tag) = fields.first() {
            if tag <= last || tag > LAST_TAG {
                return None;
            }
            last = tag;
            let field;
            (field, fields) = value(tag, fields)?;
            match tag {
                COMP_ID => {
                    session.compressed = alone(OCTET_STRING, field)?.iter().any(|&byte| byte != 0);
                }
                FLAGS => {
                    let lowest = alone(INTEGER, field)?.last()?;
                    session.extended_master_secret = lowest & FLAG_EXTENDED_MASTER_SECRET != 0;
                }
                _ => {}
            }
        }
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// The fields that every session begins with, and then these.
    fn session(more: &[u8]) -> Vec<u8> {
        let mut fields = [2, 1, 1, 2, 2, 3, 3, 4, 2, 0xc0, 0x30, 4, 1, 7, 4, 1, 9].to_vec();
        fields.extend_from_slice(more);
        let len = u8::try_from(fields.len()).unwrap();
        [&[SEQUENCE, 0x81, len], &*fields].concat()
    }

    fn extended(more: &[u8]) -> Option<bool> {
        SessionDer::read(&session(more)).map(|session| session.extended_master_secret)
    }

    #[test]
    fn the_flag_is_the_lowest_bit() {
        assert_eq!(extended(&[]), Some(false));
        assert_eq!(extended(&[FLAGS, 3, INTEGER, 1, 1]), Some(true));
        assert_eq!(extended(&[FLAGS, 3, INTEGER, 1, 2]), Some(false));
        assert_eq!(extended(&[FLAGS, 4, INTEGER, 2, 1, 0]), Some(false));
        assert_eq!(extended(&[FLAGS, 4, INTEGER, 2, 1, 3]), Some(true));
    }

    #[test]
    fn a_method_of_compression_is_a_byte() {
        let compressed = |more: &[u8]| SessionDer::read(&session(more)).map(|read| read.compressed);
        assert_eq!(compressed(&[]), Some(false));
        assert_eq!(compressed(&[COMP_ID, 3, OCTET_STRING, 1, 1]), Some(true));
        assert_eq!(compressed(&[COMP_ID, 3, OCTET_STRING, 1, 0]), Some(false));
        assert_eq!(
            compressed(&[COMP_ID, 3, OCTET_STRING, 1, 1, FLAGS, 3, INTEGER, 1, 1]),
            Some(true)
        );
        assert_eq!(compressed(&[COMP_ID, 3, INTEGER, 1, 1]), None);
        assert_eq!(compressed(&[COMP_ID, 4, OCTET_STRING, 1, 1, 0]), None);
    }

    #[test]
    fn fields_around_it_are_passed_over() {
        assert_eq!(extended(&[KEY_ARG, 1, 1, 0xa1, 3, 2, 1, 5, FLAGS, 3, 2, 1, 1]), Some(true));
        assert_eq!(extended(&[FLAGS, 3, 2, 1, 1, 0xb3, 3, 2, 1, 29, 0xbe, 0]), Some(true));
        // What another field holds is not looked at.
        assert_eq!(extended(&[0xac, 5, FLAGS, 3, 2, 1, 1]), Some(false));
    }

    #[test]
    fn what_is_no_session_is_refused() {
        for more in [
            // Not ascending, twice, key_arg not in its place, [31], another class.
            &[FLAGS, 3, 2, 1, 1, 0xa1, 3, 2, 1, 5][..],
            &[FLAGS, 3, 2, 1, 1, FLAGS, 3, 2, 1, 0],
            &[0xa1, 3, 2, 1, 5, KEY_ARG, 0],
            &[0xa0, 0],
            &[0xbf, 0],
            &[4, 0],
            // Flags that are none, of another type, with more after them, or without a value.
            &[FLAGS, 0],
            &[FLAGS, 3, 4, 1, 1],
            &[FLAGS, 4, 2, 1, 1, 0],
            &[FLAGS, 2, 2, 0],
            &[FLAGS, 3, 2, 2, 1],
            // A length that is cut off, indefinite, or longer than what is there.
            &[FLAGS],
            &[FLAGS, 0x80, 2, 1, 1, 0, 0],
            &[FLAGS, 0x81],
            &[FLAGS, 0x82, 1],
            &[FLAGS, 0x83, 0, 0, 3, 2, 1, 1],
            &[FLAGS, 4, 2, 1, 1],
        ] {
            assert_eq!(extended(more), None, "{more:02x?}");
        }
        let whole = session(&[FLAGS, 3, 2, 1, 1]);
        for end in 0..whole.len() {
            assert_eq!(SessionDer::read(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(SessionDer::read(&[&*whole, &[0]].concat()), None, "a byte after it");
        assert_eq!(SessionDer::read(&[0x31, 0]), None, "a set");
    }
}

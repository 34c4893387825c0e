//! What a session in DER says (`SSL_SESSION_ASN1`, ssl/ssl_asn1.c of OpenSSL): the fields are those
//! of docs/envelope.md and of `session_core::session_der`.

use session_core::der::{alone, value};
use session_core::session_der::SessionDer;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
/// `[0] EXPLICIT`: the tag of field n is n above it.
const EXPLICIT: u8 = 0xa0;
const KEY_ARG: u8 = 0x80;

/// A session, without its secrets. What was not in it is `None`, or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The version of TLS as it stands in a ClientHello (RFC 8446, section 4.2.1).
    pub version: u16,
    /// The number of the cipher suite.
    pub cipher: u16,
    /// The session ID; of a stateless ticket it is OpenSSL's own.
    pub id: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub time: i64,
    /// How long it lives after that, in seconds.
    pub timeout: i64,
    /// Whether the other side has shown a certificate.
    pub peer: bool,
    /// The server name that was asked for.
    pub name: Option<Vec<u8>>,
    /// How long the server says that its ticket is good, in seconds.
    pub hint: Option<i64>,
    /// The ticket.
    pub ticket: Option<Vec<u8>>,
    /// How many bytes of early data the server takes.
    pub early_data: i64,
    /// Ticket data, where the module writes what the full handshake was.
    pub data: Option<Vec<u8>>,
    /// Its master secret is an extended one (RFC 7627).
    pub extended: bool,
}

impl Session {
    /// Reads it. `None` if it is no session.
    pub fn read(der: &[u8]) -> Option<Self> {
        // Which checks the order of the fields, too.
        let extended = SessionDer::read(der)?.extended_master_secret;
        let fields = alone(SEQUENCE, der)?;
        let (_, fields) = value(INTEGER, fields)?;
        let (version, fields) = value(INTEGER, fields)?;
        let (cipher, fields) = value(OCTET_STRING, fields)?;
        let (id, fields) = value(OCTET_STRING, fields)?;
        let (_, mut fields) = value(OCTET_STRING, fields)?;
        let mut session = Session {
            version: u16::try_from(number(version)?).ok()?,
            cipher: cipher.split_last_chunk().map_or(0, |(_, last)| u16::from_be_bytes(*last)),
            id: id.to_vec(),
            extended,
            ..Session::default()
        };
        while let Some(&tag) = fields.first() {
            let field;
            (field, fields) = value(tag, fields)?;
            let text = || alone(OCTET_STRING, field).map(<[u8]>::to_vec);
            let integer = || alone(INTEGER, field).and_then(number);
            match tag.checked_sub(EXPLICIT) {
                None if tag == KEY_ARG => {}
                Some(1) => session.time = integer()?,
                Some(2) => session.timeout = integer()?,
                Some(3) => session.peer = true,
                Some(6) => session.name = text(),
                Some(9) => session.hint = integer(),
                Some(10) => session.ticket = text(),
                Some(15) => session.early_data = integer()?,
                Some(18) => session.data = text(),
                _ => {}
            }
        }
        Some(session)
    }

    /// Whether it is of TLS 1.3.
    pub fn is_tls13(&self) -> bool {
        self.version == TLS1_3
    }

    /// Its version, as `$ssl_protocol` has it.
    pub fn protocol(&self) -> String {
        match self.version {
            TLS1_3 => "TLSv1.3".into(),
            0x0303 => "TLSv1.2".into(),
            0x0302 => "TLSv1.1".into(),
            0x0301 => "TLSv1".into(),
            other => format!("0x{other:04x}"),
        }
    }

    /// Its cipher suite, in OpenSSL's words where it is one of the usual ones.
    pub fn suite(&self) -> String {
        match self.cipher {
            0x1301 => "TLS_AES_128_GCM_SHA256",
            0x1302 => "TLS_AES_256_GCM_SHA384",
            0x1303 => "TLS_CHACHA20_POLY1305_SHA256",
            0xc02b => "ECDHE-ECDSA-AES128-GCM-SHA256",
            0xc02c => "ECDHE-ECDSA-AES256-GCM-SHA384",
            0xc02f => "ECDHE-RSA-AES128-GCM-SHA256",
            0xc030 => "ECDHE-RSA-AES256-GCM-SHA384",
            0xcca8 => "ECDHE-RSA-CHACHA20-POLY1305",
            0xcca9 => "ECDHE-ECDSA-CHACHA20-POLY1305",
            0x009e => "DHE-RSA-AES128-GCM-SHA256",
            0x009f => "DHE-RSA-AES256-GCM-SHA384",
            other => return format!("0x{other:04x}"),
        }
        .into()
    }
}

/// TLS 1.3.
pub const TLS1_3: u16 = 0x0304;

/// An INTEGER of at most eight bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 8 {
        return None;
    }
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { -1 };
    Some(bytes.iter().fold(sign, |sum: i64, byte| (sum << 8) | i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_session_is_not_read() {
        assert_eq!(Session::read(b""), None);
        assert_eq!(Session::read(&[0x30, 0]), None);
    }

    #[test]
    fn integers_have_a_sign() {
        assert_eq!(number(&[0x7f]), Some(127));
        assert_eq!(number(&[0x00, 0x80]), Some(128));
        assert_eq!(number(&[0xff]), Some(-1));
        assert_eq!(number(&[]), None);
        assert_eq!(number(&[0; 9]), None);
    }

    #[test]
    fn its_fields_are_read() {
        let mut fields = [2, 1, 1, 2, 2, 3, 4, 4, 2, 0x13, 2, 4, 1, 7, 4, 1, 9].to_vec();
        fields.extend([0xa1, 3, 2, 1, 100, 0xa2, 4, 2, 2, 1, 44, 0xa6, 3, 4, 1, b'a']);
        fields.extend([0xa9, 3, 2, 1, 60, 0xaa, 4, 4, 2, 1, 2, 0xad, 3, 2, 1, 1]);
        let len = u8::try_from(fields.len()).unwrap();
        let session = Session::read(&[&[0x30, len], &*fields].concat()).unwrap();
        let expected = Session {
            version: TLS1_3,
            cipher: 0x1302,
            id: vec![7],
            time: 100,
            timeout: 300,
            name: Some(b"a".to_vec()),
            hint: Some(60),
            ticket: Some(vec![1, 2]),
            extended: true,
            ..Session::default()
        };
        assert_eq!(session, expected);
        assert_eq!(session.suite(), "TLS_AES_256_GCM_SHA384");
    }
}

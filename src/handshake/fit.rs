//! Sessions that are good, and not for this handshake.

use core::fmt;

use session_core::session_der::SessionDer;

use super::policy::{Policy, wipe};
use super::store::MAX_SESSION;
use crate::ffi::tls::{Connection, SessionRef};

/// Why a handshake goes on without a session: OpenSSL would not do so by itself. The texts are log
/// fragments.
#[derive(Clone, Copy, Debug)]
pub enum Misfit {
    /// Its master secret is an extended one, and the server is told to do without. OpenSSL then takes
    /// no notice of the client's extension, and ends the handshake as if the client had left it out
    /// (`ssl_get_prev_session()`). A client that does leave it out has to be refused (RFC 7627 §5.3):
    /// that is for OpenSSL to do, at servers that have the extension.
    ExtendedMasterSecret,
    /// The client does not offer the cipher that it is to be resumed with. RFC 5246 §7.4.1.2 has it
    /// offer that; OpenSSL ends the handshake of one that has lost it.
    NotOffered,
    /// No provider of this OpenSSL has the algorithms of its cipher. OpenSSL finds that out when it makes
    /// the keys.
    NotAvailable,
    /// The client asks for fragments of another length than it did. The length belongs to the session
    /// (RFC 6066 §4), and one of the two sides, which one depends on the version of OpenSSL, ends the
    /// handshake.
    Fragments,
    /// Its records are compressed (RFC 3749), which nginx switches off. OpenSSL ends the handshake, or
    /// where it has no compression forgets it, so that the client does.
    Compressed,
}

impl Misfit {
    /// What keeps the session of an entry from being resumed, if anything.
    pub fn of_entry(
        connection: &Connection,
        session: &SessionRef,
        der: Option<SessionDer>,
    ) -> Option<Self> {
        if der.is_some_and(|der| der.compressed) {
            return Some(Misfit::Compressed);
        }
        Self::find(connection, session, || der)
    }

    /// What keeps a session from being resumed, if anything. `der` is asked where OpenSSL has no
    /// function to tell; what it cannot tell is taken for the worse.
    pub fn find(
        connection: &Connection,
        session: &SessionRef,
        der: impl FnOnce() -> Option<SessionDer>,
    ) -> Option<Self> {
        if session.max_fragment_length() != connection.max_fragment_length() {
            return Some(Misfit::Fragments);
        }
        // TLS 1.3 has chosen its cipher by now, and knows nothing of the rest.
        if session.is_tls13() {
            return None;
        }
        if session.is_compressed() {
            return Some(Misfit::Compressed);
        }
        if !connection.offers_cipher_of(session) {
            return Some(Misfit::NotOffered);
        }
        if !connection.has_cipher_of(session) {
            return Some(Misfit::NotAvailable);
        }
        let extended = || der().is_none_or(|der| der.extended_master_secret);
        if connection.lacks_extended_master_secret() && extended() {
            return Some(Misfit::ExtendedMasterSecret);
        }
        None
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misfit::ExtendedMasterSecret => {
                "has an extended master secret, which is off at this server"
            }
            Misfit::NotOffered => "has a cipher that the client does not offer",
            Misfit::NotAvailable => "has a cipher that this OpenSSL does not have",
            Misfit::Fragments => "is for fragments of another length",
            Misfit::Compressed => "is compressed",
        })
    }
}

impl Policy {
    /// What a session says of itself that comes from elsewhere than a tier.
    pub(super) fn der_of(&self, session: &SessionRef) -> Option<SessionDer> {
        let mut scratch = self.scratch.try_borrow_mut().ok()?;
        let encoded = session.to_der(&mut scratch, MAX_SESSION);
        let read = encoded.ok().and_then(|()| SessionDer::read(&scratch));
        wipe(&mut scratch);
        read
    }
}

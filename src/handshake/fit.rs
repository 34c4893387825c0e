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
    /// It has what verifying the client's certificate came to at another server.
    ///
    /// OpenSSL compares the session ID context, which nginx makes of the server's certificate and the
    /// names of CAs. Before nginx 1.29.2 it is that of the default server, whatever the name; since
    /// then it still leaves out how deep is verified, by which further certificates and by which CRL.
    /// A name stands for all of that (RFC 6066 §3 asks for this of all sessions below TLS 1.3).
    OtherName,
    /// Its master secret is an extended one, and the server is told to do without. OpenSSL then takes
    /// no notice of the client's extension, and ends the handshake as if the client had left it out
    /// (`ssl_get_prev_session()`). A client that does leave it out has to be refused (RFC 7627 §5.3):
    /// that is for OpenSSL to do, at servers that have the extension.
    ExtendedMasterSecret,
}

impl Misfit {
    /// What keeps a session from being resumed, if anything. `der` is asked where OpenSSL has no
    /// function to tell; what it cannot tell is taken for the worse.
    pub fn find(
        connection: &Connection,
        session: &SessionRef,
        der: impl FnOnce() -> Option<SessionDer>,
    ) -> Option<Self> {
        if session.has_certificate() && session.server_name() != connection.server_name() {
            return Some(Misfit::OtherName);
        }
        let extended = || der().is_none_or(|der| der.extended_master_secret);
        if connection.lacks_extended_master_secret() && !session.is_tls13() && extended() {
            return Some(Misfit::ExtendedMasterSecret);
        }
        None
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misfit::OtherName => "is of a client certificate, for another server name",
            Misfit::ExtendedMasterSecret => {
                "has an extended master secret, which is off at this server"
            }
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

//! Whether a session may be resumed, as far as its full handshake goes: wherever it was kept, a client
//! gets by it what it would get by a full handshake at the server that it comes to.

use session_core::origin::{self, Binding, Origin, Refusal};

use super::policy::Policy;
use crate::ffi::clock;
use crate::ffi::tls::{Connection, SessionRef};

impl Policy {
    /// Whether the server that the client comes to would judge as the full handshake did, and that was
    /// not too long ago. Only while OpenSSL reads the ClientHello. A session that passes without saying
    /// what it was judged by says so from then on, so that its tickets do not begin anew.
    pub(super) fn judge(
        &self,
        connection: &Connection,
        session: &SessionRef,
    ) -> Result<(), Refusal> {
        let origin = session.origin();
        let made = session.made();
        origin::check(
            origin.as_ref(),
            connection.server_binding::<Policy>(),
            made,
            session.has_certificate(),
            self.rules.lifetime,
            clock::unix_time(),
        )?;
        if is_for_another(connection, session, origin.as_ref()) {
            return Err(Refusal::Name);
        }
        if origin.is_none() {
            session.set_origin(&Origin::assumed(made));
        }
        Ok(())
    }

    /// Lets a new session say what its full handshake was judged by, and when.
    pub(super) fn mark(&self, connection: &Connection, session: &SessionRef) {
        connection.mark_origin::<Policy>(session, clock::unix_time());
    }

    /// The last second in which a session is good, since the epoch.
    pub(super) fn expires(&self, session: &SessionRef, now: i64) -> i64 {
        let ends = |origin: Origin| origin.ends(self.rules.lifetime);
        session.origin().map_or(i64::MAX, ends).min(session.expires(now))
    }
}

/// Whether the session was made for another server name, where that counts.
///
/// Below TLS 1.3 it always does: a server does not resume such a session (RFC 6066 §3), and OpenSSL leaves
/// that to us (`tls_parse_ctos_server_name()`). nginx would take the session's name for that of the
/// connection (SSL_get_servername(3)): show it in variables, and look for the server by it.
///
/// In TLS 1.3 a name is the connection's own (RFC 8446 §4.6.1), and counts where clients are verified, or
/// the server's certificate goes by it: nginx ends such a resumption, from 1.26.3 and 1.27.4 to 1.29.1.
fn is_for_another(connection: &Connection, session: &SessionRef, origin: Option<&Origin>) -> bool {
    let verified = || origin.is_some_and(|origin| origin.binding != Binding::NONE);
    (!session.is_tls13() || session.has_certificate() || verified())
        && session.server_name() != connection.server_name()
}

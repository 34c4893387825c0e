//! A client's connection to nginx, and its ClientHello.

use core::ffi::{c_int, c_long, c_uint};
use core::ptr::{self, NonNull};

use foreign_types::ForeignTypeRef;
use nginx_sys::{NGX_USE_LEVEL_EVENT, ngx_connection_t, ngx_event_flags, ngx_ssl_connection_index};
use session_core::hello::{ClientHello, server_name};

use super::index::{Indexes, mark};
use super::session::SessionRef;
use crate::ffi::log::Log;
use crate::ffi::openssl::{
    BioRef, CertificateRef, Cross, CtxRef, OSSL_HANDSHAKE_STATE,
    OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA, SSL, SSL_OP_NO_ANTI_REPLAY,
    SSL_OP_NO_EXTENDED_MASTER_SECRET, SSL_OP_NO_TICKET, SSL_OP_NO_TLSv1_3, SSL_clear_options,
    SSL_client_hello_get0_ext, SSL_client_hello_get0_session_id, SSL_get_SSL_CTX, SSL_get_ciphers,
    SSL_get_max_early_data, SSL_get_max_proto_version, SSL_get_options, SSL_get_peer_cert_chain,
    SSL_get_rbio, SSL_get_session, SSL_get_state, SSL_get_verify_result, SSL_get0_raw_cipherlist,
    SSL_get0_verified_chain, SSL_is_server, SSL_session_reused, SSL_set_ex_data, SSL_set_options,
    SSL_version, SslRef, Stack, Suite, TLS1_3_VERSION, TLSEXT_TYPE_max_fragment_length,
    TLSEXT_TYPE_server_name, ask, lent,
};
use crate::ffi::quic;

ask! { SslRef:
    pub(super) fn is_server() -> bool = SSL_is_server;
    pub(super) fn session() -> Option<&SessionRef> = SSL_get_session;
    pub(super) fn ctx() -> Option<&CtxRef> = SSL_get_SSL_CTX;
    pub(super) fn rbio() -> Option<&BioRef> = SSL_get_rbio;
    pub(in crate::ffi) fn is_resumed() -> bool = SSL_session_reused;
    pub(in crate::ffi) fn verify_result() -> c_long = SSL_get_verify_result;
    pub(super) fn peer_chain() -> Stack<'_, CertificateRef> = SSL_get_peer_cert_chain;
    pub(super) fn verified_chain() -> Stack<'_, CertificateRef> = SSL_get0_verified_chain;
    fn protocol() -> c_int = SSL_version;
    /// 0 without a limit.
    fn max_protocol() -> c_int = SSL_get_max_proto_version;
    fn options() -> u64 = SSL_get_options;
    fn max_early_data() -> u32 = SSL_get_max_early_data;
    fn state() -> OSSL_HANDSHAKE_STATE = SSL_get_state;
    fn suites() -> Stack<'_, Suite> = SSL_get_ciphers;
}

impl SslRef {
    /// The data of an extension of the ClientHello; none after OpenSSL has read it.
    fn extension(&self, kind: c_int) -> Option<&[u8]> {
        let (mut data, mut len) = (ptr::null(), 0);
        // SAFETY: SSL_client_hello_get0_ext(3) lends data that is valid as long as OpenSSL reads the
        // ClientHello, which is longer than the current callback.
        unsafe {
            let kind = kind as c_uint;
            let there = SSL_client_hello_get0_ext(self.as_ptr(), kind, &raw mut data, &raw mut len);
            (there == 1).then(|| lent(data, len))
        }
    }
}

/// Whether nginx takes `SSL_CLIENT_HELLO_RETRY` for an order to wait (patches/).
pub(super) const LETS_CALLBACK_WAIT: bool = cfg!(nginx_client_hello_retry);

/// How a handshake can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// In OpenSSL's callback for the ClientHello.
    InCallback,
    /// Behind the filter in front of the socket.
    InFilter,
    /// It cannot.
    Not,
}

/// Whether handshakes of QUIC can wait.
pub fn quic_waits() -> bool {
    LETS_CALLBACK_WAIT || quic::waits_in_filter()
}

/// A client's connection to nginx in TLS, for the length of one call.
pub struct Connection {
    pub(super) c: NonNull<ngx_connection_t>,
    pub(super) ssl: NonNull<SSL>,
}

impl Connection {
    /// The connection of an SSL object that nginx made.
    pub(super) fn of(ssl: &SslRef) -> Option<Self> {
        // SAFETY: a static of nginx's, which it sets when it starts.
        let index = unsafe { ngx_ssl_connection_index };
        // ngx_ssl_create_connection() has set it.
        Some(Connection {
            c: NonNull::new(ssl.data(index).cast())?,
            ssl: NonNull::new(ssl.as_ptr())?,
        })
    }

    /// The connection of a request.
    ///
    /// # Safety
    /// `c` is valid for the current call.
    pub(in crate::ffi) unsafe fn of_nginx(c: *mut ngx_connection_t) -> Option<Self> {
        let c = NonNull::new(c)?;
        // SAFETY: the caller's; nginx sets ssl and its connection together.
        let ssl = unsafe { (*c.as_ptr()).ssl.as_ref()?.connection };
        Some(Connection { c, ssl: NonNull::new(ssl.cross())? })
    }

    /// The SSL object.
    pub(super) fn ssl(&self) -> &SslRef {
        // SAFETY: it is valid for the current call, as the connection is.
        unsafe { SslRef::from_ptr(self.ssl.as_ptr()) }
    }

    /// The context that the connection began with. nginx keeps it (ngx_ssl_create_connection()).
    pub(super) fn session_ctx(&self) -> Option<&CtxRef> {
        // SAFETY: it is a TLS connection of nginx.
        unsafe {
            let ctx = (*self.c.as_ptr()).ssl.as_ref()?.session_ctx.cross();
            (!ctx.is_null()).then(|| CtxRef::from_ptr(ctx))
        }
    }

    /// The connection's log.
    pub fn log(&self) -> &Log {
        // SAFETY: nginx sets a log with every connection.
        unsafe { Log::from_raw((*self.c.as_ptr()).log) }
    }

    /// The listening address that it came to: a number of it and its text.
    pub fn listening(&self) -> Option<(usize, &str)> {
        // SAFETY: the connection is valid; what it was accepted from lives as long as the cycle,
        // and so does its text.
        unsafe {
            let listening = (*self.c.as_ptr()).listening;
            let text = listening.as_ref()?.addr_text;
            let text = core::slice::from_raw_parts(text.data, text.len);
            Some((listening.addr(), core::str::from_utf8(text).ok()?))
        }
    }

    /// Whether it is QUIC.
    pub fn is_quic(&self) -> bool {
        // SAFETY: the connection is valid.
        unsafe { (*self.c.as_ptr()).type_ == libc::SOCK_DGRAM }
    }

    /// How its handshake can wait.
    pub fn waits(&self) -> Waits {
        // SAFETY: a static of nginx's, set before connections come.
        let levels = unsafe { ngx_event_flags } & NGX_USE_LEVEL_EVENT as usize != 0;
        match self.is_quic() {
            true if quic::waits_in_filter() => Waits::InFilter,
            true if LETS_CALLBACK_WAIT => Waits::InCallback,
            true => Waits::Not,
            // Data that is not read would be reported again and again.
            false if LETS_CALLBACK_WAIT && !levels => Waits::InCallback,
            false => Waits::InFilter,
        }
    }

    /// Whether TLS 1.3 may be negotiated, as far as the server's side goes.
    pub fn allows_tls13(&self) -> bool {
        self.options() & SSL_OP_NO_TLSv1_3 == 0 && self.may_allow_tls13()
    }

    /// Whether TLS 1.3 may be negotiated, whichever server answers: nginx does not take the highest
    /// version over from the server that the client names, as it does with options.
    pub fn may_allow_tls13(&self) -> bool {
        let max = self.ssl().max_protocol();
        max == 0 || max >= TLS1_3_VERSION
    }

    /// Whether TLS 1.3 was negotiated.
    pub fn is_tls13(&self) -> bool {
        self.protocol() == TLS1_3_VERSION
    }

    /// The version of TLS that was negotiated, as on the wire.
    pub fn protocol(&self) -> c_int {
        self.ssl().protocol()
    }

    /// Whether a session was resumed.
    pub fn is_resumed(&self) -> bool {
        self.ssl().is_resumed()
    }

    /// The name of the server that the client asks for. Only while OpenSSL reads the ClientHello:
    /// later OpenSSL has freed it.
    pub fn server_name(&self) -> Option<&[u8]> {
        server_name(self.ssl().extension(TLSEXT_TYPE_server_name)?)
    }

    /// The fragments that the client asks for, by their number in `max_fragment_length` (RFC 6066 §4); 0
    /// where it does not. Only while OpenSSL reads the ClientHello, as for all that it says.
    pub fn max_fragment_length(&self) -> u8 {
        let data = self.ssl().extension(TLSEXT_TYPE_max_fragment_length);
        data.and_then(|data| data.first().copied()).unwrap_or(0)
    }

    /// Whether the client offers the cipher of a session. Where OpenSSL does not tell, it does.
    pub fn offers_cipher_of(&self, session: &SessionRef) -> bool {
        let mut offered = ptr::null();
        // SAFETY: SSL_get0_raw_cipherlist() lends what ssl_cache_cipherlist() has kept of the ClientHello,
        // and says how long it is. By now OpenSSL has read over those of
        // SSL_client_hello_get0_ciphers(3).
        let offered = unsafe {
            let len = SSL_get0_raw_cipherlist(self.ssl.as_ptr(), &raw mut offered);
            (!offered.is_null()).then(|| lent(offered, len))
        };
        let (Some(offered), Some(suite)) = (offered, session.suite()) else { return true };
        let id = suite.id().to_be_bytes();
        offered.chunks_exact(id.len()).any(|one| one == id)
    }

    /// Whether this OpenSSL has the algorithms of a session's cipher.
    pub fn has_cipher_of(&self, session: &SessionRef) -> bool {
        let Some(suite) = session.suite() else { return false };
        // Only what is there gets into a server's list. Both are of the same table (d2i_SSL_SESSION()).
        self.ssl().suites().iter().any(|one| ptr::eq(one, suite)) || suite.is_available()
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        self.options() & SSL_OP_NO_TICKET == 0
    }

    /// Lets stateless tickets be read and made from now on, or session IDs and stateful tickets in their
    /// place. nginx sets that anew when it has found the server that the client names.
    pub fn set_tickets(&self, stateless: bool) {
        // SAFETY: the SSL object is valid.
        unsafe {
            match stateless {
                true => SSL_clear_options(self.ssl.as_ptr(), SSL_OP_NO_TICKET),
                false => SSL_set_options(self.ssl.as_ptr(), SSL_OP_NO_TICKET),
            };
        }
    }

    /// Whether stateless tickets are on at the server that the connection has come to by now.
    pub fn server_has_tickets(&self) -> bool {
        self.ssl().ctx().is_some_and(|ctx| ctx.options() & SSL_OP_NO_TICKET == 0)
    }

    /// Whether resumption is offered by the server that the connection has come to by now.
    pub fn offers_resumption(&self) -> bool {
        self.ssl().ctx().is_some_and(CtxRef::offers_resumption)
    }

    /// How long sessions are good, in seconds, as it is configured.
    pub fn session_timeout(&self) -> i64 {
        self.session_ctx().map_or(0, CtxRef::session_timeout)
    }

    /// Whether the server is told to do without extended master secrets (RFC 7627).
    pub fn lacks_extended_master_secret(&self) -> bool {
        self.options() & SSL_OP_NO_EXTENDED_MASTER_SECRET != 0
    }

    /// Whether OpenSSL itself protects early data, see [`has_anti_replay`].
    pub fn has_anti_replay(&self) -> bool {
        has_anti_replay(self.options(), self.ssl().max_early_data())
    }

    fn options(&self) -> u64 {
        self.ssl().options()
    }

    /// Whether the handshake that OpenSSL reports as done only pauses for early data, and whether
    /// this is the first such report of this handshake.
    pub(super) fn is_paused(&self) -> (bool, bool) {
        let Some(indexes) = Indexes::get() else { return (false, true) };
        let first = self.ssl().data(indexes.paused).is_null();
        let paused = self.ssl().state() == OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA;
        if paused {
            // SAFETY: the SSL object is valid; the data is only compared with null. Without memory it
            // is counted twice.
            unsafe { SSL_set_ex_data(self.ssl.as_ptr(), indexes.paused, mark()) };
        }
        (paused, first)
    }
}

/// Whether OpenSSL itself sees to it that early data is not replayed (`tls_parse_ctos_psk()`). It then
/// resumes a session of TLS 1.3 only if it can take it out of its own cache, and gives no stateless
/// tickets, whatever `SSL_OP_NO_TICKET` says.
pub(super) fn has_anti_replay(options: u64, max_early_data: u32) -> bool {
    max_early_data > 0 && options & SSL_OP_NO_ANTI_REPLAY == 0
}

/// The ClientHello that OpenSSL has just read.
#[repr(transparent)]
pub struct HelloRef(SslRef);

impl HelloRef {
    /// That of an SSL object, for a callback in which OpenSSL reads it.
    pub(super) fn of(ssl: &SslRef) -> &Self {
        // SAFETY: the type is transparent.
        unsafe { &*ptr::from_ref(ssl).cast() }
    }

    /// What it says about sessions; `None` if that is malformed.
    pub fn read(&self) -> Option<ClientHello> {
        let mut id = ptr::null();
        // SAFETY: SSL_client_hello_get0_session_id(3) lends for as long as the callback takes.
        let id = unsafe {
            let len = SSL_client_hello_get0_session_id(self.0.as_ptr(), &raw mut id);
            lent(id, len)
        };
        ClientHello::from_parts(id, |kind| self.0.extension(kind.into()))
    }
}

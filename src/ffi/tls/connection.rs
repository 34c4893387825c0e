//! A client's connection to nginx, and its ClientHello.

use core::ffi::{c_int, c_uint};
use core::ptr::{self, NonNull};

use foreign_types::ForeignTypeRef;
use nginx_sys::{NGX_USE_LEVEL_EVENT, ngx_connection_t, ngx_event_flags, ngx_ssl_connection_index};
use session_core::hello::{ClientHello, server_name};

use super::index::{Indexes, mark};
use super::session::SessionRef;
use crate::ffi::log::Log;
use crate::ffi::openssl::{
    Cross, ERR_pop_to_mark, ERR_set_mark, EVP_CIPHER_fetch, EVP_CIPHER_free, EVP_MD_fetch,
    EVP_MD_free, NID_undef, OBJ_nid2sn, OPENSSL_STACK, OPENSSL_sk_num, OPENSSL_sk_value,
    OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA, SSL, SSL_CIPHER, SSL_CIPHER_get_cipher_nid,
    SSL_CIPHER_get_digest_nid, SSL_CIPHER_get_protocol_id, SSL_OP_NO_ANTI_REPLAY,
    SSL_OP_NO_EXTENDED_MASTER_SECRET, SSL_OP_NO_TICKET, SSL_OP_NO_TLSv1_3, SSL_SESSION_get0_cipher,
    SSL_client_hello_get0_ext, SSL_client_hello_get0_session_id, SSL_get_ciphers, SSL_get_ex_data,
    SSL_get_max_early_data, SSL_get_max_proto_version, SSL_get_options, SSL_get_state,
    SSL_get0_raw_cipherlist, SSL_session_reused, SSL_set_ex_data, SSL_version, TLS1_3_VERSION,
    TLSEXT_TYPE_max_fragment_length, TLSEXT_TYPE_server_name,
};
use crate::ffi::quic;

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
    ///
    /// # Safety
    /// `ssl` is valid for the current call.
    pub(super) unsafe fn of(ssl: *mut SSL) -> Option<Self> {
        // SAFETY: the caller's; ngx_ssl_create_connection() has set the connection.
        let c = unsafe { SSL_get_ex_data(ssl, ngx_ssl_connection_index) };
        Some(Connection { c: NonNull::new(c.cast())?, ssl: NonNull::new(ssl)? })
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
        // SAFETY: SSL_get_max_proto_version(3); 0 is "no limit".
        let max = unsafe { SSL_get_max_proto_version(self.ssl.as_ptr()) };
        max == 0 || max >= TLS1_3_VERSION
    }

    /// Whether TLS 1.3 was negotiated.
    pub fn is_tls13(&self) -> bool {
        self.protocol() == TLS1_3_VERSION
    }

    /// The version of TLS that was negotiated, as on the wire.
    pub fn protocol(&self) -> c_int {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_version(self.ssl.as_ptr()) }
    }

    /// Whether a session was resumed.
    pub fn is_resumed(&self) -> bool {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_session_reused(self.ssl.as_ptr()) == 1 }
    }

    /// The name of the server that the client asks for. Only while OpenSSL reads the ClientHello:
    /// later OpenSSL has freed it.
    pub fn server_name(&self) -> Option<&[u8]> {
        // SAFETY: the SSL object is valid, and the caller's.
        server_name(unsafe { extension(self.ssl, TLSEXT_TYPE_server_name) }?)
    }

    /// The fragments that the client asks for, by their number in `max_fragment_length` (RFC 6066 §4); 0
    /// where it does not. Only while OpenSSL reads the ClientHello, as for all that it says.
    pub fn max_fragment_length(&self) -> u8 {
        // SAFETY: the SSL object is valid, and the caller's.
        let data = unsafe { extension(self.ssl, TLSEXT_TYPE_max_fragment_length) };
        data.and_then(|data| data.first().copied()).unwrap_or(0)
    }

    /// Whether the client offers the cipher of a session. Where OpenSSL does not tell, it does.
    pub fn offers_cipher_of(&self, session: &SessionRef) -> bool {
        let mut offered: *const u8 = ptr::null();
        // SAFETY: SSL_get0_raw_cipherlist() lends what ssl_cache_cipherlist() has
        // kept of the ClientHello, and says how long it is; ciphers are static. By now OpenSSL has read
        // over those of SSL_client_hello_get0_ciphers(3).
        unsafe {
            let cipher = SSL_SESSION_get0_cipher(session.as_ptr());
            let len = SSL_get0_raw_cipherlist(self.ssl.as_ptr(), &raw mut offered);
            if cipher.is_null() || offered.is_null() {
                return true;
            }
            let id = SSL_CIPHER_get_protocol_id(cipher).to_be_bytes();
            core::slice::from_raw_parts(offered, len).chunks_exact(id.len()).any(|one| one == id)
        }
    }

    /// Whether this OpenSSL has the algorithms of a session's cipher.
    pub fn has_cipher_of(&self, session: &SessionRef) -> bool {
        // SAFETY: SSL_get_ciphers(3) lends a stack of ciphers, or returns null. They are static: those
        // of sessions are of the same table (d2i_SSL_SESSION()).
        unsafe {
            let cipher = SSL_SESSION_get0_cipher(session.as_ptr());
            if cipher.is_null() {
                return false;
            }
            // Only what is there gets into a server's list.
            let list: *const OPENSSL_STACK = SSL_get_ciphers(self.ssl.as_ptr()).cast_const().cast();
            let len = if list.is_null() { 0 } else { OPENSSL_sk_num(list) };
            (0..len).any(|n| OPENSSL_sk_value(list, n).cast_const().cast() == cipher)
                || is_available(cipher)
        }
    }

    /// Whether stateless tickets are on.
    pub fn has_tickets(&self) -> bool {
        self.options() & SSL_OP_NO_TICKET == 0
    }

    /// Whether the server is told to do without extended master secrets (RFC 7627).
    pub fn lacks_extended_master_secret(&self) -> bool {
        self.options() & SSL_OP_NO_EXTENDED_MASTER_SECRET != 0
    }

    /// Whether OpenSSL itself protects early data, see [`has_anti_replay`].
    pub fn has_anti_replay(&self) -> bool {
        // SAFETY: the SSL object is valid.
        has_anti_replay(self.options(), unsafe { SSL_get_max_early_data(self.ssl.as_ptr()) })
    }

    fn options(&self) -> u64 {
        // SAFETY: the SSL object is valid.
        unsafe { SSL_get_options(self.ssl.as_ptr()) }
    }

    /// Whether the handshake that OpenSSL reports as done only pauses for early data, and whether
    /// this is the first such report of this handshake.
    pub(super) fn is_paused(&self) -> (bool, bool) {
        let Some(indexes) = Indexes::get() else { return (false, true) };
        let (ssl, index) = (self.ssl.as_ptr(), indexes.paused);
        // SAFETY: the SSL object is valid; the data is only compared with null.
        unsafe {
            let first = SSL_get_ex_data(ssl, index).is_null();
            let paused = SSL_get_state(ssl) == OSSL_HANDSHAKE_STATE_TLS_ST_EARLY_DATA;
            if paused {
                // Without memory it is counted twice.
                SSL_set_ex_data(ssl, index, mark());
            }
            (paused, first)
        }
    }
}

/// Whether OpenSSL itself sees to it that early data is not replayed (`tls_parse_ctos_psk()`). It then
/// resumes a session of TLS 1.3 only if it can take it out of its own cache, and gives no stateless
/// tickets, whatever `SSL_OP_NO_TICKET` says.
pub(super) fn has_anti_replay(options: u64, max_early_data: u32) -> bool {
    max_early_data > 0 && options & SSL_OP_NO_ANTI_REPLAY == 0
}

/// The data of an extension of the ClientHello.
///
/// # Safety
/// `ssl` is valid, and OpenSSL reads its ClientHello.
unsafe fn extension<'a>(ssl: NonNull<SSL>, kind: c_int) -> Option<&'a [u8]> {
    let (mut data, mut len) = (ptr::null(), 0);
    // SAFETY: SSL_client_hello_get0_ext(3) lends data that is valid as long as OpenSSL reads the
    // ClientHello, which is longer than the current callback.
    unsafe {
        let there =
            SSL_client_hello_get0_ext(ssl.as_ptr(), kind as c_uint, &raw mut data, &raw mut len);
        if there != 1 {
            return None;
        }
        // An empty one may have no data.
        Some(if data.is_null() { &[] } else { core::slice::from_raw_parts(data, len) })
    }
}

/// Whether a provider has the algorithms of a cipher, as OpenSSL looks for them when it makes a context
/// (`ssl_load_ciphers()`).
///
/// # Safety
/// The cipher is one of OpenSSL's.
unsafe fn is_available(cipher: *const SSL_CIPHER) -> bool {
    // SAFETY: the caller's. EVP_CIPHER_fetch(3) and EVP_MD_fetch(3) take a name, which is static, and
    // return a reference of ours, or null, which their counterparts take, too.
    unsafe {
        ERR_set_mark();
        let nid = SSL_CIPHER_get_cipher_nid(cipher);
        let encrypts = nid == NID_undef || {
            let found = EVP_CIPHER_fetch(ptr::null_mut(), OBJ_nid2sn(nid), ptr::null());
            EVP_CIPHER_free(found);
            !found.is_null()
        };
        let nid = SSL_CIPHER_get_digest_nid(cipher);
        let authenticates = nid == NID_undef || {
            let found = EVP_MD_fetch(ptr::null_mut(), OBJ_nid2sn(nid), ptr::null());
            EVP_MD_free(found);
            !found.is_null()
        };
        ERR_pop_to_mark();
        encrypts && authenticates
    }
}

/// The ClientHello that OpenSSL has just read.
pub struct HelloRef(pub(super) NonNull<SSL>);

impl HelloRef {
    /// What it says about sessions; `None` if that is malformed.
    pub fn read(&self) -> Option<ClientHello> {
        let mut id = ptr::null();
        // SAFETY: SSL_client_hello_get0_session_id(3) lends for as long as the callback takes.
        let id = unsafe {
            let len = SSL_client_hello_get0_session_id(self.0.as_ptr(), &raw mut id);
            if id.is_null() { &[] } else { core::slice::from_raw_parts(id, len) }
        };
        // SAFETY: a HelloRef is made for a callback in which OpenSSL reads the ClientHello.
        ClientHello::from_parts(id, |kind| unsafe { extension(self.0, kind.into()) })
    }
}

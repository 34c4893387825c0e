//! Handshakes over QUIC, in which nginx feeds OpenSSL by itself.

use core::cell::OnceCell;
use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr::NonNull;
use std::rc::Rc;
use std::sync::OnceLock;

use nginx_sys::{
    ERR_clear_error, NGX_ERROR, SSL, SSL_ERROR_WANT_CLIENT_HELLO_CB, SSL_ERROR_WANT_READ,
    SSL_do_handshake, SSL_get_error, ngx_connection_t, ngx_int_t,
};

use super::event::{Event, On};
use super::log::Log;
use crate::debug;

/// Whether a filter in front of OpenSSL can let a handshake wait. It can with what nginx has for
/// OpenSSL before 3.5 (ngx_event_quic_openssl_compat.c), where OpenSSL reads records from memory;
/// with OpenSSL's own functions for QUIC it reads from nobody.
pub fn waits_in_filter() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| symbol(c"ngx_quic_compat_init").is_some())
}

/// Goes on with a handshake, at the end of a turn of the event loop.
pub struct Wake {
    c: NonNull<ngx_connection_t>,
    ssl: NonNull<SSL>,
    event: OnceCell<Event<Wake, Wake>>,
}

impl Wake {
    /// # Safety
    /// The connection, and its SSL object, live longer than this.
    pub(super) unsafe fn new(c: NonNull<ngx_connection_t>, ssl: NonNull<SSL>) -> Rc<Self> {
        let wake = Rc::new(Wake { c, ssl, event: OnceCell::new() });
        // It was empty.
        let _ = wake.event.set(Event::new(Rc::downgrade(&wake)));
        wake
    }

    /// At the end of this turn.
    pub fn soon(&self) {
        if let Some(event) = self.event.get() {
            event.soon();
        }
    }
}

impl On<Wake> for Wake {
    /// nginx does the same when a packet comes (ngx_quic_crypto_input(), since 1.29
    /// ngx_quic_handshake()). What OpenSSL has to send it queues, and sends at the end of this turn.
    fn on(&self) {
        let (c, ssl) = (self.c.as_ptr(), self.ssl.as_ptr());
        // SAFETY: both are valid, see new(), and nothing of OpenSSL's is under way.
        let (n, error) = unsafe {
            ERR_clear_error();
            let n = SSL_do_handshake(ssl);
            (n, if n <= 0 { SSL_get_error(ssl, n) } else { 0 })
        };
        // SAFETY: nginx sets a log with every connection.
        let log = unsafe { Log::from_raw((*c).log) };
        debug!(log, "SSL session fetch: SSL_do_handshake: {n}, {error}");
        let waits = [SSL_ERROR_WANT_READ, SSL_ERROR_WANT_CLIENT_HELLO_CB];
        if n > 0 || waits.contains(&(error as u32)) {
            return;
        }
        // SAFETY: ngx_quic_close_connection() of this nginx (ngx_event_quic.c), which tells the
        // client of the alert, and frees the connection. Nothing of it is used after that.
        unsafe {
            ERR_clear_error();
            if let Some(close) = symbol(c"ngx_quic_close_connection") {
                type Close = unsafe extern "C" fn(*mut ngx_connection_t, ngx_int_t);
                let close: Close = mem::transmute::<NonNull<c_void>, Close>(close);
                close(c, NGX_ERROR as ngx_int_t);
            }
            // Where nginx does not show it, the next packet finds the error.
        }
    }
}

/// A function of nginx's that is not in all builds.
fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: dlsym(3) with a string.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

//! Handshakes over QUIC, in which nginx feeds OpenSSL by itself.

use core::cell::OnceCell;
use core::ptr::NonNull;
use std::rc::Rc;
use std::sync::OnceLock;

use nginx_sys::ngx_connection_t;
use ngx::core::Status;

use super::event::{Event, Handle};
use super::log::Log;
use super::openssl::{
    SSL, SSL_ERROR_WANT_CLIENT_HELLO_CB, SSL_ERROR_WANT_READ, SSL_do_handshake, SSL_get_error,
    clear_errors,
};
use super::shim;
use super::symbol;
use super::turn::Turn;
use crate::debug;

/// Whether a filter in front of OpenSSL can let a handshake wait. It can with what nginx has for
/// OpenSSL before 3.5 (ngx_event_quic_openssl_compat.c), where OpenSSL reads records from memory;
/// with OpenSSL's own functions for QUIC it reads from nobody.
pub fn waits_in_filter() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| symbol::find(c"ngx_quic_compat_init").is_some())
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
    pub fn post(&self) {
        if let Some(event) = self.event.get() {
            event.post();
        }
    }
}

impl Handle<Wake> for Wake {
    fn fired(&self, turn: &mut Turn) {
        let nginx = Nginx::get();
        let goes_on = match nginx.handshake {
            // SAFETY: the connection is valid, see new(), and nothing of OpenSSL's is under way.
            Some(handshake) => unsafe { Status(handshake(self.c.as_ptr())).is_ok() },
            None => self.handshake(turn),
        };
        // Where nginx does not show how it closes, the next packet finds the error.
        if let Some(close) = nginx.close.filter(|_| !goes_on) {
            // SAFETY: it tells the client of the alert, and frees the connection. Nothing of it is
            // used after that.
            unsafe { close(self.c.as_ptr(), Status::NGX_ERROR.into()) };
        }
    }
}

impl Wake {
    /// What nginx does when a packet comes, as far as that can be done from here. What OpenSSL has to
    /// send it queues, and sends at the end of this turn. Since 1.29 it keeps some errors to itself,
    /// and a handshake that has one ends by its timeout.
    fn handshake(&self, _: &mut Turn) -> bool {
        let ssl = self.ssl.as_ptr();
        clear_errors();
        // SAFETY: both are valid, see new(), and nothing of OpenSSL's is under way.
        let (n, error) = unsafe {
            let n = SSL_do_handshake(ssl);
            (n, if n <= 0 { SSL_get_error(ssl, n) } else { 0 })
        };
        // SAFETY: nginx sets a log with every connection.
        let log = unsafe { Log::from_raw((*self.c.as_ptr()).log) };
        debug!(log, "SSL session fetch: SSL_do_handshake: {n}, {error}");
        let waits = [SSL_ERROR_WANT_READ, SSL_ERROR_WANT_CLIENT_HELLO_CB];
        let goes_on = n > 0 || waits.contains(&error);
        if !goes_on {
            clear_errors();
        }
        goes_on
    }
}

/// Functions of nginx's for QUIC.
struct Nginx {
    /// `ngx_quic_handshake()` (ngx_event_quic_ssl.c), which our patch for 1.29 and later shows.
    handshake: shim::quic_handshake,
    /// `ngx_quic_close_connection()` (ngx_event_quic.c).
    close: shim::quic_close_connection,
}

impl Nginx {
    fn get() -> &'static Self {
        static HERE: OnceLock<Nginx> = OnceLock::new();
        // SAFETY: the types are of these functions.
        HERE.get_or_init(|| unsafe {
            Nginx {
                handshake: symbol::function(c"ngx_quic_handshake"),
                close: symbol::function(c"ngx_quic_close_connection"),
            }
        })
    }
}

//! TLS on a connection to a server, over nginx's own SSL code.

use std::string::ToString;

use foreign_types::{ForeignType, ForeignTypeRef};

use nginx_sys::{
    NGX_SSL_CLIENT, ngx_connection_t, ngx_create_pool, ngx_posted_events,
    ngx_ssl_create_connection, ngx_ssl_get_session, ngx_ssl_handshake, ngx_ssl_set_session,
    ngx_tcp_nodelay,
};
use ngx::core::Status;

use crate::ffi::client::{TlsClient, TlsError, TlsName};
use crate::ffi::openssl::{Cross, SSL_set_tlsext_host_name, SslRef, clear_errors};
use crate::ffi::shim;
use crate::ffi::tls::Session;
use crate::ffi::turn::Turn;

use super::{Context, Link, Stage};

/// Size of the pool of a connection that speaks TLS, in bytes. Little more than an
/// `ngx_ssl_connection_t` is in it.
const POOL_SIZE: usize = 512;

/// How far a TLS handshake is.
#[derive(Debug)]
pub enum Handshake {
    /// It is through, and what was to be verified is. The owner is told in the next turn of the
    /// event loop that it may read.
    Done,
    /// [`LinkOwner::handshaken`](super::LinkOwner::handshaken) tells when to go on.
    Again,
    /// It failed. The link is of no more use.
    Failed(TlsError),
}

impl Link {
    /// Does the TLS handshake, with the name the server goes by and a session that the same server
    /// has given earlier under the same `tls` and name; at once if it has been done.
    ///
    /// The first call only prepares: one connection's handshake must not run within a callback of
    /// OpenSSL about another's. Later ones come from [`LinkOwner::handshaken`](super::LinkOwner::handshaken).
    pub fn handshake(
        &self,
        _: &Turn,
        tls: &TlsClient,
        name: &TlsName,
        earlier: Option<&Session>,
    ) -> Handshake {
        let stage = &self.context().stage;
        match stage.get() {
            Stage::Tls => return Handshake::Done,
            Stage::Failed => return self.handshake_failed(None),
            Stage::Shaking => {}
            Stage::Plain => {
                if !self.prepare(tls, name, earlier) {
                    return self.handshake_failed(None);
                }
                stage.set(Stage::Shaking);
                // SAFETY: the event is the connection's own; it is taken back when that is closed.
                unsafe {
                    shim::post_event((*self.connection.as_ptr()).write, &raw mut ngx_posted_events);
                }
                return Handshake::Again;
            }
        }
        let c = self.connection.as_ptr();
        // SAFETY: the connection and its events are ours, and prepare() has set ssl.
        // ngx_ssl_handshake() puts its own handlers in place of those of the events.
        let rc = unsafe {
            let handlers = ((*(*c).read).handler, (*(*c).write).handler);
            let rc = Status(ngx_ssl_handshake(c));
            ((*(*c).read).handler, (*(*c).write).handler) = handlers;
            rc
        };
        if rc == Status::NGX_AGAIN {
            return Handshake::Again;
        }
        if !rc.is_ok() {
            return self.handshake_failed(None);
        }
        // SAFETY: the handshake is through.
        if let Err(error) = unsafe { tls.verify(c, name) } {
            return self.handshake_failed(Some(error));
        }
        stage.set(Stage::Tls);
        clear_errors();
        // OpenSSL may have read more than the handshake, which no event reports again.
        self.read_later();
        Handshake::Done
    }

    fn handshake_failed(&self, error: Option<TlsError>) -> Handshake {
        let context = self.context();
        context.stage.set(Stage::Failed);
        context.session.set(None);
        clear_errors();
        let said = || self.last_error().unwrap_or_else(|| "SSL_do_handshake() failed".to_string());
        Handshake::Failed(error.unwrap_or_else(|| TlsError::Handshake(said().into())))
    }

    /// Makes the TLS side of the connection. `false` if that failed, which nginx has said.
    fn prepare(&self, tls: &TlsClient, name: &TlsName, earlier: Option<&Session>) -> bool {
        let c = self.connection.as_ptr();
        // SAFETY: the connection is ours; the pool is destroyed after it is closed. ssl and what
        // is in it is set by ngx_ssl_create_connection() on success. SSL_set_tlsext_host_name(3)
        // copies the name. The session is counted up for the SSL object.
        unsafe {
            // An abbreviated handshake goes badly with Nagle's algorithm.
            if self.is_tcp && !Status(ngx_tcp_nodelay(c)).is_ok() {
                return false;
            }
            if (*c).pool.is_null() {
                (*c).pool = ngx_create_pool(POOL_SIZE, (*c).log);
            }
            if (*c).pool.is_null()
                || !Status(ngx_ssl_create_connection(tls.as_ptr(), c, NGX_SSL_CLIENT as usize))
                    .is_ok()
            {
                return false;
            }
            let ssl = (*c).ssl;
            if !tls.give_to(SslRef::from_ptr((*ssl).connection.cross())) {
                return false;
            }
            if let Some(name) = name.sent() {
                let ssl = (*ssl).connection.cross();
                if SSL_set_tlsext_host_name(ssl, name.as_ptr().cast_mut()) == 0 {
                    return false;
                }
            }
            if tls.reuses_sessions() {
                (*ssl).save_session = Some(save_session);
                if let Some(earlier) = earlier {
                    return Status(ngx_ssl_set_session(c, earlier.as_ptr().cross())).is_ok();
                }
            }
            true
        }
    }

    /// The newest session that the server has given since this was last asked, for the next
    /// connection to it. In TLS 1.3 servers give them after the handshake, with what is read.
    pub fn take_session(&self) -> Option<Session> {
        self.context().session.take()
    }

    /// Whether the handshake was abbreviated.
    pub fn was_resumed(&self) -> bool {
        self.context().stage.get() == Stage::Tls
            // SAFETY: at this stage there is an SSL object.
            && unsafe {
                let ssl = (*(*self.connection.as_ptr()).ssl).connection;
                SslRef::from_ptr(ssl.cross()).is_resumed()
            }
    }
}

/// Keeps a session that the server gives. OpenSSL calls it while it reads, which is why the owner
/// is not told.
unsafe extern "C" fn save_session(c: *mut ngx_connection_t) {
    // SAFETY: the connection is of Link::connect(), which has set its data; what
    // ngx_ssl_get_session() returns is counted up.
    unsafe {
        let context = (*c).data.cast::<Context>();
        let session = ngx_ssl_get_session(c).cross();
        if !session.is_null() {
            (*context).session.set(Some(Session::from_ptr(session)));
        }
    }
}

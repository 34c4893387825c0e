//! Sessions that the clients hold, and the contexts that bring them.

use std::cell::RefCell;

use openssl::ssl::{
    SslContext, SslContextBuilder, SslMethod, SslSession, SslSessionCacheMode, SslVersion,
};

use crate::Result;

/// What browsers offer, which is less than what OpenSSL does.
const CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20";
const GROUPS: &str = "X25519:P-256:P-384";
const SIGNATURES: &str = "ECDSA+SHA256:RSA-PSS+SHA256:RSA+SHA256:ECDSA+SHA384:RSA-PSS+SHA384:\
                          RSA+SHA384:RSA-PSS+SHA512:RSA+SHA512";

thread_local! {
    /// Sessions that have arrived since they were taken last.
    static ARRIVED: RefCell<Vec<SslSession>> = const { RefCell::new(Vec::new()) };
}

/// One for handshakes whose sessions are of no interest, one that keeps them.
pub struct Contexts {
    pub forgetting: SslContext,
    pub keeping: SslContext,
}

impl Contexts {
    pub fn new(version: SslVersion) -> Result<Self> {
        let mut keeping = builder(version)?;
        keeping
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        keeping.set_new_session_callback(|_, session| {
            ARRIVED.with_borrow_mut(|arrived| arrived.push(session));
        });
        Ok(Contexts { forgetting: builder(version)?.build(), keeping: keeping.build() })
    }
}

fn builder(version: SslVersion) -> Result<SslContextBuilder> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(version))?;
    context.set_max_proto_version(Some(version))?;
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // OpenSSL goes over the lists several times.
    context.set_cipher_list(CIPHERS)?;
    context.set_sigalgs_list(SIGNATURES)?;
    context.set_groups_list(GROUPS)?;
    // Without it each record is read in two steps, header and body.
    context.set_read_ahead(true);
    Ok(context)
}

#[derive(Default)]
pub struct Sessions {
    all: Vec<SslSession>,
    /// The one that is offered next.
    next: usize,
}

impl Sessions {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Each in turn, whatever the number of handshakes in one go.
    pub fn offer(&mut self) -> Option<SslSession> {
        let session = self.all.get(self.next % self.all.len().max(1))?.clone();
        self.next += 1;
        Some(session)
    }

    /// The one that has come first, which nobody else is going to offer.
    pub fn spend(&mut self) -> Option<SslSession> {
        (!self.all.is_empty()).then(|| self.all.remove(0))
    }

    pub fn keep_arrived(&mut self) {
        ARRIVED.with_borrow_mut(|arrived| self.all.append(arrived));
    }

    pub fn forget(&mut self) {
        *self = Sessions::default();
    }

    /// `n` of them with other IDs, or tickets, that nobody has given out.
    pub fn forged(&self, n: usize, tls13: bool) -> Result<Self> {
        let genuine = self.all.iter().cycle().take(n);
        let all = genuine.map(|session| forge(session, tls13)).collect::<Result<Vec<_>>>()?;
        Ok(Sessions { all, ..Sessions::default() })
    }
}

fn forge(session: &SslSession, tls13: bool) -> Result<SslSession> {
    let mut der = session.to_der()?;
    // SSL_SESSION_ASN1.ticket of 32 bytes, which is what names a session of TLS 1.3.
    const TICKET: [u8; 4] = [0xaa, 0x22, 0x04, 0x20];
    let at = if tls13 {
        let place = der.windows(TICKET.len()).position(|bytes| bytes == TICKET);
        place.ok_or("a session without a stateful ticket")? + TICKET.len()
    } else {
        let id = session.id();
        der.windows(id.len()).position(|bytes| bytes == id).ok_or("a session without an ID")?
    };
    openssl::rand::rand_bytes(der.get_mut(at..at + 32).ok_or("a short ID")?)?;
    Ok(SslSession::from_der(&der)?)
}

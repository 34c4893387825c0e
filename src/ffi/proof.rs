//! What connections to servers prove themselves with, and verify servers by, where it is in files: these
//! are read again for a new connection when they have changed.
//!
//! What nginx has read with the configuration is in the `SSL_CTX`, and stays there. What is read later is
//! given to each new connection in its place: connections that are there, and their sessions, are not
//! touched, and nothing is changed before all of it is known to be good.

use core::cell::{Cell, RefCell};
use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;
use std::ffi::CString;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

use foreign_types::{ForeignType, ForeignTypeRef};
use zeroize::Zeroizing;

use super::client::TlsConf;
use super::conf::{Conf, Refusal, Str};
use super::file::{Unusable, Watched};
use super::openssl::{
    BIO_new_mem_buf, Bio, Certificate, CtxRef, ERR_GET_LIB, ERR_GET_REASON, ERR_LIB_PEM,
    ERR_peek_last_error, Key, PEM_R_NO_START_LINE, PEM_read_bio_PrivateKey, PEM_read_bio_X509,
    SSL_CTRL_CHAIN_CERT, SSL_CTRL_SET_VERIFY_CERT_STORE, SSL_certs_clear, SSL_check_private_key,
    SSL_ctrl, SSL_new, SSL_use_PrivateKey, SSL_use_certificate, Ssl, SslRef, Store,
    X509_FILETYPE_PEM, X509_LOOKUP_file, X509_STORE_add_lookup, X509_STORE_new,
    X509_STORE_set_flags, X509_V_FLAG_CRL_CHECK, X509_V_FLAG_CRL_CHECK_ALL, X509_load_cert_file,
    X509_load_crl_file, unheard,
};
use super::turn::Turn;

/// The longest file of a certificate or a key, in bytes.
const MAX_PEM: usize = 256 * 1024;
/// What names no file in `ssl_certificate` and `ssl_certificate_key`.
const NO_FILE: [&[u8]; 3] = [b"data:", b"engine:", b"store:"];

/// What became of a file that had changed: its name, and whether it is used.
pub type News<'a> = (&'a Watched, Result<bool, Unusable>);

/// The files of a backend, and what was read of them since nginx did.
pub struct Proof {
    pair: Option<PairFiles>,
    trust: Option<TrustFiles>,
    newer: RefCell<Newer>,
    /// How often something newer was found.
    generation: Cell<u64>,
}

struct PairFiles {
    certificate: Rc<Watched>,
    key: Rc<Watched>,
    /// Of the key, as they were read with the configuration.
    passwords: Vec<Zeroizing<Vec<u8>>>,
}

struct TrustFiles {
    trusted: Rc<Watched>,
    crl: Option<Rc<Watched>>,
}

/// What is used in place of what nginx has read.
#[derive(Default)]
struct Newer {
    pair: Option<Pair>,
    store: Option<Store>,
}

struct Pair {
    certificate: Certificate,
    chain: Vec<Certificate>,
    key: Key,
}

impl Proof {
    /// The files that the directives name, before nginx reads them.
    pub fn new(cf: &mut Conf, conf: &TlsConf) -> Result<Self, Refusal> {
        let mut file = |directive, name: &Str| -> Result<Option<Rc<Watched>>, Refusal> {
            let Some(name) = name.get().filter(|name| !name.is_empty()) else { return Ok(None) };
            if NO_FILE.iter().any(|word| name.starts_with(word)) {
                return Ok(None);
            }
            let path = cf.full_name(&String::from_utf8_lossy(name))?;
            Ok(Watched::unread(directive, &path).map(Rc::new))
        };
        let certificate = file("ssl_certificate", &conf.certificate)?;
        let key = file("ssl_certificate_key", &conf.certificate_key)?;
        let trusted = file("ssl_trusted_certificate", &conf.trusted_certificate)?;
        let crl = file("ssl_crl", &conf.crl)?;
        let passwords = conf.passwords.copied();
        let pair = certificate.zip(key);
        // Of a list alone there is nothing that would be changed with it.
        let trust = trusted.filter(|_| crl.is_some() || !conf.crl.is_set());
        Ok(Proof {
            pair: pair.map(|(certificate, key)| PairFiles { certificate, key, passwords }),
            trust: trust.map(|trusted| TrustFiles { trusted, crl }),
            newer: RefCell::default(),
            generation: Cell::new(0),
        })
    }

    /// What servers would be verified by is of no interest.
    pub fn verifies_nobody(&mut self) {
        self.trust = None;
    }

    /// The files that are read again.
    pub fn files(&self) -> impl Iterator<Item = &Rc<Watched>> {
        let pair = self.pair.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        let trust = self.trust.iter().flat_map(|it| [Some(&it.trusted), it.crl.as_ref()]);
        pair.chain(trust.flatten())
    }

    /// How often something newer was found. A session of an earlier connection is of no use after it: it
    /// was made with another certificate, or by other rules.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Reads what has changed. What is of no use leaves what was read before: a certificate and its key
    /// may be replaced one after the other.
    pub fn refresh(&self, turn: &Turn, ctx: &CtxRef) -> Vec<News<'_>> {
        let mut news = Vec::new();
        if let Some(files) = &self.pair {
            let both = [&files.certificate, &files.key];
            self.read(turn, &both, &mut news, || {
                let pair = files.read(turn)?;
                // On a connection that is never made.
                // SAFETY: the context is valid; what is made is ours, or null.
                let ssl = unsafe { SSL_new(ctx.as_ptr()) };
                // SAFETY: as above.
                let ssl = (!ssl.is_null()).then(|| unsafe { Ssl::from_ptr(ssl) });
                if !ssl.is_some_and(|ssl| pair.give_to(&ssl)) {
                    return Err((&files.key, Unusable::Not("the key of \"ssl_certificate\"")));
                }
                Ok(Newer { pair: Some(pair), store: None })
            });
        }
        if let Some(files) = &self.trust {
            let all: Vec<_> =
                [Some(&files.trusted), files.crl.as_ref()].into_iter().flatten().collect();
            self.read(turn, &all, &mut news, || {
                Ok(Newer { pair: None, store: Some(files.read()?) })
            });
        }
        news
    }

    /// Reads files that belong together, if one of them has changed.
    fn read<'a>(
        &'a self,
        turn: &Turn,
        files: &[&'a Rc<Watched>],
        news: &mut Vec<News<'a>>,
        load: impl FnOnce() -> Result<Newer, (&'a Rc<Watched>, Unusable)>,
    ) {
        let mut changed = None;
        let mut all_there = true;
        for file in files {
            match file.has_changed(turn) {
                Ok(true) => changed = Some(*file),
                Ok(false) => {}
                Err(unusable) => {
                    all_there = false;
                    news.push((file, Err(unusable)));
                }
            }
        }
        let Some(changed) = changed.filter(|_| all_there) else { return };
        match unheard(load) {
            Ok(found) => {
                let Ok(mut newer) = self.newer.try_borrow_mut() else { return };
                let Newer { pair, store } = found;
                newer.pair = pair.or(newer.pair.take());
                newer.store = store.or(newer.store.take());
                self.generation.set(self.generation.get().wrapping_add(1));
                news.push((changed, Ok(true)));
            }
            Err((file, unusable)) => news.push((file, Err(unusable))),
        }
    }

    /// Gives a new connection what was read since nginx did. `false` if that failed.
    pub(super) fn give_to(&self, ssl: &SslRef) -> bool {
        let Ok(newer) = self.newer.try_borrow() else { return true };
        newer.pair.as_ref().is_none_or(|pair| pair.give_to(ssl))
            && newer.store.as_ref().is_none_or(|store| {
                let store = store.as_ptr().cast::<c_void>();
                // SAFETY: SSL_set1_verify_cert_store(3) is this macro. It counts the store up.
                unsafe { SSL_ctrl(ssl.as_ptr(), SSL_CTRL_SET_VERIFY_CERT_STORE, 1, store) == 1 }
            })
    }
}

impl PairFiles {
    fn read(&self, turn: &Turn) -> Result<Pair, (&Rc<Watched>, Unusable)> {
        let text = pem(turn, &self.certificate)?;
        let Some((certificate, chain)) = certificates(&text) else {
            return Err((&self.certificate, Unusable::Not("a certificate in PEM")));
        };
        let text = pem(turn, &self.key)?;
        let key = if self.passwords.is_empty() {
            key(&text, None)
        } else {
            self.passwords.iter().find_map(|password| key(&text, Some(password)))
        };
        let Some(key) = key else {
            let what = "a key in PEM that \"ssl_password_file\" opens";
            return Err((&self.key, Unusable::Not(what)));
        };
        Ok(Pair { certificate, chain, key })
    }
}

impl TrustFiles {
    /// As ngx_ssl_trusted_certificate() and ngx_ssl_crl() do it.
    fn read(&self) -> Result<Store, (&Rc<Watched>, Unusable)> {
        let name = |file: &Watched| CString::new(file.path()).unwrap_or_default();
        let flags = X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL;
        // SAFETY: what is made is ours, or null; the lookup is the store's. The files are regular ones,
        // whose names are only read.
        unsafe {
            let store = X509_STORE_new();
            if store.is_null() {
                return Err((&self.trusted, Unusable::Failed("malloc()", libc::ENOMEM)));
            }
            let store = Store::from_ptr(store);
            let lookup = X509_STORE_add_lookup(store.as_ptr(), X509_LOOKUP_file());
            if lookup.is_null()
                || X509_load_cert_file(lookup, name(&self.trusted).as_ptr(), X509_FILETYPE_PEM) < 1
            {
                return Err((&self.trusted, Unusable::Not("a certificate in PEM")));
            }
            if let Some(crl) = &self.crl {
                if X509_load_crl_file(lookup, name(crl).as_ptr(), X509_FILETYPE_PEM) < 1 {
                    return Err((crl, Unusable::Not("a revocation list in PEM")));
                }
                X509_STORE_set_flags(store.as_ptr(), flags);
            }
            Ok(store)
        }
    }
}

impl Pair {
    /// In place of what the connection has of its context.
    fn give_to(&self, ssl: &SslRef) -> bool {
        let ssl = ssl.as_ptr();
        // SAFETY: all objects are valid, and are counted up where they are kept. SSL_add1_chain_cert(3) is
        // the macro that is written out here; it is about the certificate that was used last.
        unsafe {
            SSL_certs_clear(ssl);
            SSL_use_certificate(ssl, self.certificate.as_ptr()) == 1
                && self.chain.iter().all(|certificate| {
                    let certificate = certificate.as_ptr().cast::<c_void>();
                    SSL_ctrl(ssl, SSL_CTRL_CHAIN_CERT, 1 as c_long, certificate) == 1
                })
                && SSL_use_PrivateKey(ssl, self.key.as_ptr()) == 1
                && SSL_check_private_key(ssl) == 1
        }
    }
}

/// All that is in a file.
fn pem<'a>(
    turn: &Turn,
    file: &'a Rc<Watched>,
) -> Result<Zeroizing<Vec<u8>>, (&'a Rc<Watched>, Unusable)> {
    match file.read(turn, MAX_PEM) {
        Ok(text) if text.len() > MAX_PEM => Err((file, Unusable::TooLong(MAX_PEM))),
        Ok(text) => Ok(text),
        Err(unusable) => Err((file, unusable)),
    }
}

/// What is in a text, to be read as a file is.
fn bio(text: &[u8]) -> Option<Bio> {
    let len = c_int::try_from(text.len()).ok()?;
    // SAFETY: the text is only read, by what does not outlive it; what is made is ours, or null.
    unsafe {
        let bio = BIO_new_mem_buf(text.as_ptr().cast(), len);
        (!bio.is_null()).then(|| Bio::from_ptr(bio))
    }
}

/// The certificates in a text: the first, and its chain. `None` if there is something else, or half of
/// one.
fn certificates(text: &[u8]) -> Option<(Certificate, Vec<Certificate>)> {
    let bio = bio(text)?;
    // SAFETY: the BIO is valid; what is read is ours, or null. A certificate has no password.
    let mut all = core::iter::from_fn(|| unsafe {
        let read = PEM_read_bio_X509(bio.as_ptr(), ptr::null_mut(), None, ptr::null_mut());
        (!read.is_null()).then(|| Certificate::from_ptr(read))
    });
    let (first, chain) = (all.next()?, all.collect());
    // SAFETY: it is about the queue of this thread, in which the end of the text is an error, too.
    let end = unsafe { ERR_peek_last_error() };
    let is_end = ERR_GET_LIB(end) == ERR_LIB_PEM && ERR_GET_REASON(end) == PEM_R_NO_START_LINE;
    is_end.then_some((first, chain))
}

/// The key in a text.
fn key(text: &[u8], password: Option<&Zeroizing<Vec<u8>>>) -> Option<Key> {
    let bio = bio(text)?;
    let password = password.map_or(&[][..], |password| password.as_slice());
    // SAFETY: the BIO is valid, the password outlives the call, and what is read is ours, or null.
    unsafe {
        let password = ptr::from_ref(&password).cast_mut().cast::<c_void>();
        let read =
            PEM_read_bio_PrivateKey(bio.as_ptr(), ptr::null_mut(), Some(tell_password), password);
        (!read.is_null()).then(|| Key::from_ptr(read))
    }
}

/// Without it OpenSSL would ask at a terminal.
unsafe extern "C" fn tell_password(
    buf: *mut c_char,
    size: c_int,
    _writes: c_int,
    password: *mut c_void,
) -> c_int {
    // SAFETY: key() passes it a password, and OpenSSL a buffer of that size (pem_password_cb(3)).
    let (password, size) =
        unsafe { (*password.cast::<&[u8]>(), usize::try_from(size).unwrap_or(0)) };
    let Some(len) = c_int::try_from(password.len()).ok().filter(|_| password.len() <= size) else {
        return -1;
    };
    // SAFETY: there is room for it.
    unsafe { ptr::copy_nonoverlapping(password.as_ptr(), buf.cast(), password.len()) };
    len
}

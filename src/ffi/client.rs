//! TLS to a server, over nginx's own SSL code: what a handshake goes by and how it ends. The
//! handshake itself is [`Link::handshake`](super::link::Link::handshake).

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_long};
use core::fmt;
use core::mem;
use core::net::IpAddr;
use core::ptr;
use std::boxed::Box;
use std::ffi::CString;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use nginx_sys::{
    NGX_OK, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3, ngx_connection_t, ngx_int_t, ngx_ssl_certificate,
    ngx_ssl_check_host, ngx_ssl_ciphers, ngx_ssl_cleanup_ctx, ngx_ssl_client_session_cache,
    ngx_ssl_conf_commands, ngx_ssl_create, ngx_ssl_crl, ngx_ssl_t, ngx_ssl_trusted_certificate,
    ngx_str_t, ngx_uint_t,
};

use session_core::hint::Hint;

use super::conf::{Conf, Flag, KeyVals, Num, Passwords, Protocols, Refusal, Str};
use super::file::Watched;
use super::openssl::{
    Certificate, Cross, CtxRef, SSL_CTX_set_default_verify_paths, SSL_CTX_set_mode,
    SSL_CTX_set_options, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_ENABLE_PARTIAL_WRITE,
    SSL_OP_CLEANSE_PLAINTEXT, SslRef, X509_V_OK, X509_verify_cert_error_string, clear_errors,
};
use super::proof::{News, Proof};
use super::turn::Turn;

/// Default of `ssl_protocols`.
const PROTOCOLS: ngx_uint_t = (NGX_SSL_TLSv1_2 | NGX_SSL_TLSv1_3) as ngx_uint_t;
/// Default of `ssl_ciphers`.
const CIPHERS: &CStr = c"DEFAULT";
/// Default of `ssl_verify_depth`.
const VERIFY_DEPTH: usize = 1;
/// The longest name that TLS can carry, in bytes (`TLSEXT_MAXLEN_host_name`).
const MAX_NAME: usize = 255;

/// What the `ssl_*` directives of a backend say, named as the `proxy_ssl_*` of nginx. nginx writes
/// to the fields.
#[repr(C)]
pub struct TlsConf {
    /// `ssl_server_name`: the name is sent (SNI). On by default; it is for [`TlsName::new`].
    pub server_name: Flag,
    /// `ssl_verify`: the server's certificate is verified. On by default.
    pub verify: Flag,
    /// `ssl_session_reuse`: sessions are kept for the next connection. On by default.
    pub session_reuse: Flag,
    /// `ssl_verify_depth`: how many certificates may be between the server's and a trusted one,
    /// plus one. 1 by default.
    pub verify_depth: Num,
    /// `ssl_protocols`: TLSv1.2 and TLSv1.3 by default.
    pub protocols: Protocols,
    /// `ssl_ciphers`: `DEFAULT` by default.
    pub ciphers: Str,
    /// `ssl_trusted_certificate`: a file; by default what the system trusts.
    pub trusted_certificate: Str,
    /// `ssl_crl`: a file of revocation lists.
    pub crl: Str,
    /// `ssl_certificate`: a file.
    pub certificate: Str,
    /// `ssl_certificate_key`: a file.
    pub certificate_key: Str,
    /// `ssl_password_file`, read.
    pub passwords: Passwords,
    /// `ssl_conf_command`s.
    pub conf_commands: KeyVals,
}

impl TlsConf {
    /// One of the directives that are set, if any is.
    pub fn any(&self) -> Option<&'static str> {
        let set = [
            ("ssl_verify", self.verify.is_set()),
            ("ssl_trusted_certificate", self.trusted_certificate.get().is_some()),
            ("ssl_crl", self.crl.get().is_some()),
            ("ssl_certificate", self.certificate.get().is_some()),
            ("ssl_server_name", self.server_name.is_set()),
            ("ssl_ciphers", self.ciphers.get().is_some()),
            ("ssl_protocols", self.protocols.is_set()),
            ("ssl_verify_depth", self.verify_depth.is_set()),
            ("ssl_certificate_key", self.certificate_key.get().is_some()),
            ("ssl_password_file", !self.passwords.as_ptr().is_null()),
            ("ssl_conf_command", !self.conf_commands.as_ptr().is_null()),
            ("ssl_session_reuse", self.session_reuse.is_set()),
        ];
        set.into_iter().find_map(|(directive, is_set)| is_set.then_some(directive))
    }

    /// Nothing is set.
    pub const UNSET: Self = TlsConf {
        server_name: Flag::UNSET,
        verify: Flag::UNSET,
        session_reuse: Flag::UNSET,
        verify_depth: Num::UNSET,
        protocols: Protocols::UNSET,
        ciphers: Str::UNSET,
        trusted_certificate: Str::UNSET,
        crl: Str::UNSET,
        certificate: Str::UNSET,
        certificate_key: Str::UNSET,
        passwords: Passwords::UNSET,
        conf_commands: KeyVals::UNSET,
    };
}

/// How handshakes with the servers of a backend are done: one `SSL_CTX`. It is freed when this is
/// dropped, as far as no connection still refers to it.
pub struct TlsClient {
    /// Boxed, since from nginx 1.27.4 on the SSL_CTX refers to it.
    ssl: Box<UnsafeCell<ngx_ssl_t>>,
    verify: bool,
    session_reuse: bool,
    proof: Proof,
}

impl TlsClient {
    /// Carries out the directives; `conf` was filled while the same configuration was read.
    pub fn new(cf: &mut Conf, conf: &TlsConf) -> Result<Self, Refusal> {
        // SAFETY: all-zero is what ngx_http_proxy_set_ssl() begins with too.
        let mut ssl: ngx_ssl_t = unsafe { mem::zeroed() };
        ssl.log = cf.raw().log;
        let ssl = Box::new(UnsafeCell::new(ssl));
        let protocols = conf.protocols.or(PROTOCOLS);
        // Before nginx reads the files: what changes meanwhile is read again.
        let proof = Proof::new(cf, conf)?;
        // SAFETY: the box outlives the SSL_CTX that is made here.
        checked(unsafe { ngx_ssl_create(ssl.get(), protocols, ptr::null_mut()) })?;
        // From here on dropping it cleans up.
        let mut client = TlsClient {
            ssl,
            verify: conf.verify.or(true),
            session_reuse: conf.session_reuse.or(true),
            proof,
        };
        client.configure(cf, conf)?;
        if client.verify {
            client.trust(cf, conf)?;
        } else {
            client.proof.verifies_nobody();
        }
        Ok(client)
    }

    fn configure(&self, cf: &mut Conf, conf: &TlsConf) -> Result<(), Refusal> {
        let ssl = self.as_ptr();
        let mut ciphers = conf.ciphers.raw().unwrap_or(ngx_str_t {
            len: CIPHERS.count_bytes(),
            data: CIPHERS.as_ptr().cast_mut().cast(),
        });
        // SAFETY: the SSL_CTX is there; the strings are copies of headers of words of the
        // configuration, which end in a null byte, as nginx's functions want it. These keep
        // nothing of the arguments, and may give strings a full path from the pool. The mode is
        // SSL_CTX_set_mode(3), which is this macro: what is written sits in a buffer that grows.
        unsafe {
            checked(ngx_ssl_ciphers(cf.as_ptr(), ssl, &raw mut ciphers, 0))?;
            if let Some(mut certificate) = conf.certificate.raw() {
                let Some(mut key) = conf.certificate_key.raw() else {
                    return Err(cf.refuse(format_args!(
                        "no \"ssl_certificate_key\" is defined for certificate \"{certificate}\""
                    )));
                };
                checked(ngx_ssl_certificate(
                    cf.as_ptr(),
                    ssl,
                    &raw mut certificate,
                    &raw mut key,
                    conf.passwords.as_ptr(),
                ))?;
            }
            let reuse = ngx_uint_t::from(self.session_reuse);
            checked(ngx_ssl_client_session_cache(cf.as_ptr(), ssl, reuse))?;
            checked(ngx_ssl_conf_commands(cf.as_ptr(), ssl, conf.conf_commands.as_ptr()))?;
            let mode = SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER;
            SSL_CTX_set_mode((*ssl).ctx.cross(), mode);
            // What was read does not stay in OpenSSL's buffer until something else is.
            SSL_CTX_set_options((*ssl).ctx.cross(), SSL_OP_CLEANSE_PLAINTEXT);
        }
        Ok(())
    }

    /// What certificates are verified against.
    fn trust(&self, cf: &mut Conf, conf: &TlsConf) -> Result<(), Refusal> {
        let ssl = self.as_ptr();
        let mut trusted = conf.trusted_certificate.raw().unwrap_or(ngx_str_t::empty());
        let mut crl = conf.crl.raw().unwrap_or(ngx_str_t::empty());
        let depth = ngx_int_t::try_from(conf.verify_depth.or(VERIFY_DEPTH)).unwrap_or(0);
        // SAFETY: as in configure().
        unsafe {
            checked(ngx_ssl_trusted_certificate(cf.as_ptr(), ssl, &raw mut trusted, depth))?;
            if trusted.is_empty() {
                let set = SSL_CTX_set_default_verify_paths((*ssl).ctx.cross());
                clear_errors();
                if set != 1 {
                    return Err(cf.refuse(format_args!(
                        "the system's trusted certificates cannot \
                                                       be used, no ssl_trusted_certificate for \
                                                       ssl_verify"
                    )));
                }
            }
            checked(ngx_ssl_crl(cf.as_ptr(), ssl, &raw mut crl))
        }
    }

    pub(super) fn as_ptr(&self) -> *mut ngx_ssl_t {
        self.ssl.get()
    }

    /// The files that are read again when they have changed, see [`TlsClient::refresh`].
    pub fn files(&self) -> impl Iterator<Item = &Rc<Watched>> {
        self.proof.files()
    }

    /// Reads again what has changed of certificates, keys and revocation lists, for new connections.
    pub fn refresh(&self, turn: &Turn) -> Vec<News<'_>> {
        // SAFETY: the SSL_CTX is there as long as this.
        self.proof.refresh(turn, unsafe { CtxRef::from_ptr((*self.as_ptr()).ctx.cross()) })
    }

    /// Tells connections from others that were made with other certificates, or verified by others.
    pub fn generation(&self) -> u64 {
        self.proof.generation()
    }

    /// Gives a new connection what was read again. `false` if that failed.
    pub(super) fn give_to(&self, ssl: &SslRef) -> bool {
        self.proof.give_to(ssl)
    }

    /// Whether sessions are to be kept.
    pub fn reuses_sessions(&self) -> bool {
        self.session_reuse
    }

    /// Looks what came out of the verification of the server's certificate, if it is wanted.
    ///
    /// # Safety
    /// The TLS handshake of `c` is through.
    pub(super) unsafe fn verify(
        &self,
        c: *mut ngx_connection_t,
        name: &TlsName,
    ) -> Result<(), TlsError> {
        if !self.verify {
            return Ok(());
        }
        // SAFETY: the caller's. X509_verify_cert_error_string(3) gives a text that stays.
        unsafe {
            let ssl = SslRef::from_ptr((*(*c).ssl).connection.cross());
            let code = ssl.verify_result();
            if code != c_long::from(X509_V_OK) {
                let text = CStr::from_ptr(X509_verify_cert_error_string(code)).to_string_lossy();
                return Err(TlsError::Verify { code, text: text.into() });
            }
            let mut host = ngx_str_t {
                len: name.name.count_bytes(),
                data: name.name.as_ptr().cast_mut().cast(),
            };
            if ngx_ssl_check_host(c, &raw mut host) == NGX_OK as ngx_int_t {
                return Ok(());
            }
            // nginx compares names only.
            let is_of_it = |shown: Certificate| shown.is_of_ip(&name.name);
            if name.is_ip && ssl.peer_certificate().is_some_and(is_of_it) {
                return Ok(());
            }
        }
        Err(TlsError::Name(name.to_string().into()))
    }
}

impl Drop for TlsClient {
    fn drop(&mut self) {
        // SAFETY: the cleanup of what new() made, once. From nginx 1.27.4 on it reads an array
        // from the configuration's pool, in whose cleanup at the latest this is dropped.
        unsafe { ngx_ssl_cleanup_ctx(self.as_ptr().cast()) };
    }
}

/// nginx has said why.
fn checked(rc: ngx_int_t) -> Result<(), Refusal> {
    if rc == NGX_OK as ngx_int_t { Ok(()) } else { Err(Refusal::Said) }
}

/// The name of a server, as its certificate has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsName {
    name: CString,
    is_ip: bool,
    is_sent: bool,
}

impl TlsName {
    /// A name, or an IP address; brackets around it, a port behind it and the dot at the end of a
    /// full name are left out. `sni`: it is sent, unless it is an address (RFC 6066, section 3).
    /// What [`TlsName::is_valid`] refuses matches no certificate.
    pub fn new(text: &str, sni: bool) -> Self {
        let is_ip = |text: &str| text.parse::<IpAddr>().is_ok();
        let text = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((inner, _)) => inner,
            None if is_ip(text) => text,
            None => text.split(':').next().unwrap_or_default(),
        };
        let text = text.strip_suffix('.').unwrap_or(text);
        let text = if Self::is_valid(text) { text } else { "" };
        let is_ip = is_ip(text);
        TlsName {
            name: CString::new(text).unwrap_or_default(),
            is_ip,
            is_sent: sni && !is_ip && !text.is_empty(),
        }
    }

    /// Whether a name can be used: it is not empty, nor longer than TLS can carry.
    pub fn is_valid(text: &str) -> bool {
        (1..=MAX_NAME).contains(&text.len()) && !text.contains('\0')
    }

    /// The name to send, if one is to be sent.
    pub(super) fn sent(&self) -> Option<&CStr> {
        self.is_sent.then_some(&*self.name)
    }
}

impl fmt::Display for TlsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.name.to_bytes()))
    }
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// It was not completed: nginx's words, with OpenSSL's number and text.
    Handshake(Box<str>),
    /// The certificate is not to be trusted: OpenSSL's number and text.
    Verify {
        /// `X509_V_ERR_...`
        code: c_long,
        /// Its text.
        text: Box<str>,
    },
    /// The certificate is of another name than this.
    Name(Box<str>),
}

impl TlsError {
    /// What an operator can do about it.
    pub fn hint(&self) -> Option<Hint<'static>> {
        match self {
            TlsError::Handshake(text) => hint(text),
            TlsError::Verify { .. } => Some(Hint::Trust),
            TlsError::Name(_) => Some(Hint::TlsName),
        }
    }
}

/// What an operator can do about what OpenSSL has said.
pub fn hint(text: &str) -> Option<Hint<'static>> {
    let has = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if has(&["wrong version number", "unknown protocol", "packet length too long"]) {
        // What has come is no record.
        Some(Hint::SpeaksNoTls)
    } else if has(&["alert certificate required", "alert handshake failure"]) {
        Some(Hint::ClientCertificate)
    } else {
        None
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Handshake(text) => f.write_str(text),
            TlsError::Verify { code, text } => {
                write!(f, "certificate verify error: ({code}:{text})")
            }
            TlsError::Name(name) => write!(f, "certificate does not match \"{name}\""),
        }
    }
}

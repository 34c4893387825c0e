//! Binds sessions to the names that a server's certificates are for.

use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::ptr;
use std::vec::Vec;

use nginx_sys::{
    ASN1_STRING_get0_data, ASN1_STRING_length, EVP_sha256, NID_subject_alt_name, OPENSSL_STACK,
    OPENSSL_sk_num, OPENSSL_sk_value, SSL_CERT_SET_FIRST, SSL_CERT_SET_NEXT,
    SSL_CTRL_SELECT_CURRENT_CERT, SSL_CTRL_SET_CURRENT_CERT, SSL_CTX, SSL_CTX_ctrl,
    SSL_CTX_get_client_CA_list, SSL_CTX_get0_certificate, SSL_CTX_set_session_id_context, X509,
    X509_EXTENSION_get_data, X509_NAME, X509_NAME_digest, X509_get_ext, X509_get_ext_by_NID,
    X509_get_subject_name,
};
use session_core::certificate_names as names;
use session_core::origin::Fingerprint;

use super::context::{Context, HookError};

impl Context {
    /// Gives the context a session ID context that goes by the names of its certificates, in place of
    /// nginx's, which goes by their fingerprints and their order (ngx_ssl_session_id_context()).
    /// `scope` is that of its block. One without certificates, as where `ssl_certificate` has
    /// variables, is left alone: nginx's then goes by the text of the directive.
    pub fn bind_to_names(&self, scope: &str) -> Result<(), HookError> {
        let ctx = self.as_ptr();
        // SAFETY: the context is valid; OpenSSL copies what is set.
        unsafe {
            let mut certificates = certificates(ctx).ok_or(HookError)?;
            if certificates.is_empty() {
                return Ok(());
            }
            let mut authorities = authorities(ctx).ok_or(HookError)?;
            let context = names::context(scope, &mut certificates, &mut authorities);
            let len = context.len() as c_uint;
            let set = SSL_CTX_set_session_id_context(ctx, context.as_ptr(), len);
            if set == 1 { Ok(()) } else { Err(HookError) }
        }
    }
}

/// The digests of the names of a context's certificates. `None` without memory.
///
/// # Safety
/// `ctx` is valid.
unsafe fn certificates(ctx: *mut SSL_CTX) -> Option<Vec<Fingerprint>> {
    let mut found = Vec::new();
    // SAFETY: the caller's. SSL_CTX_set_current_cert(3) and SSL_CTX_select_current_cert(3), which are
    // these macros, go through the certificates that have keys; SSL_CTX_get0_certificate(3) lends.
    // The current one is what it was afterwards: it takes what is set next.
    unsafe {
        let control = |command: u32, number: u32, data: *mut X509| {
            SSL_CTX_ctrl(ctx, command as c_int, number.into(), data.cast::<c_void>()) == 1
        };
        let current = SSL_CTX_get0_certificate(ctx);
        let mut which = SSL_CERT_SET_FIRST;
        while control(SSL_CTRL_SET_CURRENT_CERT, which, ptr::null_mut()) {
            found.push(names_of(SSL_CTX_get0_certificate(ctx))?);
            which = SSL_CERT_SET_NEXT;
        }
        if !current.is_null() {
            control(SSL_CTRL_SELECT_CURRENT_CERT, 0, current);
        }
    }
    Some(found)
}

/// # Safety
/// `certificate` is valid.
unsafe fn names_of(certificate: *mut X509) -> Option<Fingerprint> {
    // SAFETY: the caller's. X509_get_ext_by_NID(3), X509_get_ext(3) and X509_EXTENSION_get_data(3)
    // lend, and so does ASN1_STRING_get0_data(3); a certificate has a subject.
    unsafe {
        let subject = name_digest(X509_get_subject_name(certificate))?;
        let at = X509_get_ext_by_NID(certificate, NID_subject_alt_name as c_int, -1);
        if at < 0 {
            return Some(names::of_certificate(None, &subject));
        }
        let value = X509_EXTENSION_get_data(X509_get_ext(certificate, at));
        let bytes = ASN1_STRING_get0_data(value);
        let len = usize::try_from(ASN1_STRING_length(value)).unwrap_or(0);
        let bytes = if len == 0 { &[] } else { core::slice::from_raw_parts(bytes, len) };
        Some(names::of_certificate(Some(bytes), &subject))
    }
}

/// The digests of the names of the authorities that clients are told of. `None` without memory.
///
/// # Safety
/// `ctx` is valid.
unsafe fn authorities(ctx: *mut SSL_CTX) -> Option<Vec<Fingerprint>> {
    // SAFETY: the caller's; SSL_CTX_get_client_CA_list(3) lends, or returns null, whose number is -1.
    unsafe {
        let list = SSL_CTX_get_client_CA_list(ctx).cast::<OPENSSL_STACK>();
        (0..OPENSSL_sk_num(list).max(0))
            .map(|n| name_digest(OPENSSL_sk_value(list, n).cast::<X509_NAME>()))
            .collect()
    }
}

/// # Safety
/// `name` is valid.
unsafe fn name_digest(name: *const X509_NAME) -> Option<Fingerprint> {
    let mut digest: Fingerprint = [0; 32];
    // SAFETY: the caller's; there is room for a SHA-256.
    let done = unsafe {
        X509_NAME_digest(name, EVP_sha256(), digest.as_mut_ptr().cast::<c_uchar>(), ptr::null_mut())
    };
    (done == 1).then_some(digest)
}

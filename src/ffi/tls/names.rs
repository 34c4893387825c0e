//! Binds sessions to the names that a server's certificates are for.

use core::ffi::c_uint;
use std::vec::Vec;

use foreign_types::ForeignTypeRef;
use session_core::certificate_names as names;
use session_core::origin::Fingerprint;

use super::context::{Context, HookError};
use crate::ffi::openssl::{
    ASN1_STRING_get0_data, ASN1_STRING_length, CertificateRef, CtxRef, NID_subject_alt_name,
    NameRef, SSL_CERT_SET_FIRST, SSL_CERT_SET_NEXT, SSL_CTX_get_client_CA_list,
    SSL_CTX_get0_certificate, SSL_CTX_select_current_cert, SSL_CTX_set_current_cert,
    SSL_CTX_set_session_id_context, Stack, X509_EXTENSION_get_data, X509_get_ext,
    X509_get_ext_by_NID, X509_get_subject_name, ask, lent,
};

ask! { CtxRef:
    /// The certificate that takes what is set next.
    fn current_certificate() -> Option<&CertificateRef> = SSL_CTX_get0_certificate;
    /// Those that clients are told of.
    fn authorities() -> Stack<'_, NameRef> = SSL_CTX_get_client_CA_list;
}

ask! { CertificateRef:
    fn subject() -> Option<&NameRef> = X509_get_subject_name;
}

impl Context {
    /// Gives the context a session ID context that goes by the names of its certificates, in place of
    /// nginx's, which goes by their fingerprints and their order (ngx_ssl_session_id_context()).
    /// `scope` is that of its block. One without certificates, as where `ssl_certificate` has
    /// variables, is left alone: nginx's then goes by the text of the directive.
    pub fn bind_to_names(&self, scope: &str) -> Result<(), HookError> {
        let ctx = self.ctx();
        let mut certificates = ctx.names_of_certificates().ok_or(HookError)?;
        if certificates.is_empty() {
            return Ok(());
        }
        let authorities: Option<_> = ctx.authorities().iter().map(NameRef::sha256).collect();
        let mut authorities: Vec<_> = authorities.ok_or(HookError)?;
        let context = names::context(scope, &mut certificates, &mut authorities);
        let (ptr, len) = (context.as_ptr(), context.len() as c_uint);
        // SAFETY: the context is valid; OpenSSL copies what is set.
        let set = unsafe { SSL_CTX_set_session_id_context(ctx.as_ptr(), ptr, len) };
        if set == 1 { Ok(()) } else { Err(HookError) }
    }
}

impl CtxRef {
    /// The digests of the names of each certificate that has a key. `None` without memory.
    fn names_of_certificates(&self) -> Option<Vec<Fingerprint>> {
        let mut found = Vec::new();
        let current = self.current_certificate();
        let mut which = SSL_CERT_SET_FIRST;
        // SAFETY: the context is valid.
        while unsafe { SSL_CTX_set_current_cert(self.as_ptr(), which.into()) } == 1 {
            found.push(self.current_certificate()?.names()?);
            which = SSL_CERT_SET_NEXT;
        }
        if let Some(current) = current {
            // SAFETY: the context is valid, and the certificate is one of its own.
            unsafe { SSL_CTX_select_current_cert(self.as_ptr(), current.as_ptr()) };
        }
        Some(found)
    }
}

impl CertificateRef {
    /// A digest of the names that it is for. `None` without memory.
    fn names(&self) -> Option<Fingerprint> {
        let subject = self.subject()?.sha256()?;
        // SAFETY: the certificate is valid. X509_get_ext_by_NID(3), X509_get_ext(3) and
        // X509_EXTENSION_get_data(3) lend, and so does ASN1_STRING_get0_data(3).
        let names = unsafe {
            let at = X509_get_ext_by_NID(self.as_ptr(), NID_subject_alt_name, -1);
            (at >= 0).then(|| {
                let value = X509_EXTENSION_get_data(X509_get_ext(self.as_ptr(), at));
                let len = usize::try_from(ASN1_STRING_length(value)).unwrap_or(0);
                lent(ASN1_STRING_get0_data(value), len)
            })
        };
        Some(names::of_certificate(names, &subject))
    }
}

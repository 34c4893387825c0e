//! Objects of OpenSSL's. What is owned or counted goes when it is dropped; what is lent is a reference.

use core::ffi::{CStr, c_int, c_uchar, c_uint, c_void};
use core::marker::PhantomData;
use core::ptr;

use foreign_types::{ForeignType, ForeignTypeRef, Opaque, foreign_type};
use openssl_sys::*;

use super::unheard;

foreign_type! {
    /// One side of a connection.
    pub unsafe type Ssl {
        type CType = SSL;
        fn drop = SSL_free;
    }

    /// What connections of a server have in common. Counted.
    pub unsafe type Ctx {
        type CType = SSL_CTX;
        fn drop = SSL_CTX_free;
        fn clone = up_ctx;
    }

    /// A TLS session. Counted.
    pub unsafe type Session {
        type CType = SSL_SESSION;
        fn drop = SSL_SESSION_free;
    }

    /// What is read from and written to. Counted.
    pub unsafe type Bio {
        type CType = BIO;
        fn drop = free_bio;
        fn clone = up_bio;
    }

    /// The functions of a kind of BIO.
    pub unsafe type BioMethod {
        type CType = BIO_METHOD;
        fn drop = BIO_meth_free;
    }

    /// A certificate. Counted.
    pub unsafe type Certificate {
        type CType = X509;
        fn drop = X509_free;
    }

    /// A private key. Counted.
    pub unsafe type Key {
        type CType = EVP_PKEY;
        fn drop = EVP_PKEY_free;
    }

    /// What certificates are verified by. Counted.
    pub unsafe type Store {
        type CType = X509_STORE;
        fn drop = X509_STORE_free;
    }

    /// A moment.
    pub unsafe type Time {
        type CType = ASN1_TIME;
        fn drop = ASN1_TIME_free;
    }

    /// An algorithm of encryption that a provider has. Counted.
    pub unsafe type Algorithm {
        type CType = EVP_CIPHER;
        fn drop = EVP_CIPHER_free;
    }

    /// An algorithm of digests that a provider has. Counted.
    unsafe type Digest {
        type CType = EVP_MD;
        fn drop = EVP_MD_free;
    }

    /// A cipher at work in one direction.
    pub unsafe type Cipher {
        type CType = EVP_CIPHER_CTX;
        fn drop = EVP_CIPHER_CTX_free;
    }
}

/// Types of what is only lent.
macro_rules! lent_types {
    ($($(#[$doc:meta])* $name:ident: $raw:ty;)*) => { $(
        $(#[$doc])*
        pub struct $name(Opaque);

        // SAFETY: the methods are those of the trait.
        unsafe impl ForeignTypeRef for $name {
            type CType = $raw;
        }
    )* };
}

lent_types! {
    /// A cipher suite. Those of OpenSSL are static.
    Suite: SSL_CIPHER;
    /// A certificate or a revocation list of a store.
    StoreObjectRef: X509_OBJECT;
    /// A revocation list.
    CrlRef: X509_CRL;
    /// A name, as certificates have them.
    NameRef: X509_NAME;
}

unsafe fn up_ctx(ctx: *mut SSL_CTX) -> *mut SSL_CTX {
    // SAFETY: the caller's: it is valid. Counting up one that is fails where there are no atomics only.
    unsafe { SSL_CTX_up_ref(ctx) };
    ctx
}

unsafe fn up_bio(bio: *mut BIO) -> *mut BIO {
    // SAFETY: as in up_ctx().
    unsafe { BIO_up_ref(bio) };
    bio
}

unsafe fn free_bio(bio: *mut BIO) {
    // SAFETY: the caller's: it owns the reference.
    unsafe { BIO_free(bio) };
}

/// What a function of OpenSSL's returns, in Rust.
pub trait Answer<Raw> {
    /// # Safety
    /// What a pointer is to is valid as long as the result.
    unsafe fn of(raw: Raw) -> Self;
}

impl<T> Answer<T> for T {
    unsafe fn of(raw: T) -> T {
        raw
    }
}

impl Answer<c_int> for bool {
    unsafe fn of(raw: c_int) -> bool {
        raw != 0
    }
}

impl<'a, R: ForeignTypeRef> Answer<*mut R::CType> for Option<&'a R> {
    unsafe fn of(raw: *mut R::CType) -> Option<&'a R> {
        // SAFETY: the caller's, unless it is null.
        (!raw.is_null()).then(|| unsafe { R::from_ptr(raw) })
    }
}

impl<'a, R: ForeignTypeRef> Answer<*const R::CType> for Option<&'a R> {
    unsafe fn of(raw: *const R::CType) -> Option<&'a R> {
        // SAFETY: the caller's.
        unsafe { Answer::of(raw.cast_mut()) }
    }
}

impl<S, R> Answer<*mut S> for Stack<'_, R> {
    unsafe fn of(raw: *mut S) -> Self {
        Stack(raw.cast(), PhantomData)
    }
}

/// Methods that are a function of OpenSSL's which takes an object and nothing else, and is good for any
/// object at any time. What it lends is the object's, or static.
macro_rules! ask {
    ($handle:ty: $($(#[$doc:meta])* $vis:vis fn $method:ident() -> $out:ty = $function:path;)*) => {
        impl $handle { $(
            $(#[$doc])*
            #[inline]
            $vis fn $method(&self) -> $out {
                // SAFETY: the object is valid, and what it lends is so as long as it is borrowed.
                unsafe { $crate::ffi::openssl::Answer::of($function(self.as_ptr())) }
            }
        )* }
    };
}
pub(in crate::ffi) use ask;

ask! { StoreRef:
    pub fn objects() -> Stack<'_, StoreObjectRef> = X509_STORE_get0_objects;
}

ask! { StoreObjectRef:
    /// The certificate, if it is one.
    pub fn certificate() -> Option<&CertificateRef> = X509_OBJECT_get0_X509;
    /// The revocation list, if it is one.
    pub fn crl() -> Option<&CrlRef> = X509_OBJECT_get0_X509_CRL;
}

ask! { CertificateRef:
    /// When it ends.
    pub fn end() -> Option<&TimeRef> = X509_get0_notAfter;
}

ask! { CrlRef:
    /// When it begins.
    pub fn begin() -> Option<&TimeRef> = X509_CRL_get0_lastUpdate;
    /// When the next one is due, if that is said.
    pub fn end() -> Option<&TimeRef> = X509_CRL_get0_nextUpdate;
}

ask! { Suite:
    /// Its number on the wire.
    pub fn id() -> u16 = SSL_CIPHER_get_protocol_id;
    fn algorithm() -> c_int = SSL_CIPHER_get_cipher_nid;
    fn digest() -> c_int = SSL_CIPHER_get_digest_nid;
}

/// A stack that is lent, null for an empty one. What is in it is lent with it.
pub struct Stack<'a, R>(*const OPENSSL_STACK, PhantomData<&'a R>);

impl<'a, R: ForeignTypeRef> Stack<'a, R> {
    /// How many there are.
    pub fn len(&self) -> c_int {
        // SAFETY: a stack of OpenSSL's is one of pointers, whatever its type says; -1 for null.
        unsafe { OPENSSL_sk_num(self.0) }.max(0)
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let stack = self.0;
        // SAFETY: as above; the number is one of the stack's.
        (0..self.len())
            .filter_map(move |n| unsafe { Answer::of(OPENSSL_sk_value(stack, n).cast()) })
    }
}

/// Bytes that are lent; none where there is no pointer.
///
/// # Safety
/// There are as many, as long as the result is in use.
pub unsafe fn lent<'a>(bytes: *const c_uchar, len: usize) -> &'a [u8] {
    // SAFETY: the caller's.
    if bytes.is_null() { &[] } else { unsafe { core::slice::from_raw_parts(bytes, len) } }
}

macro_rules! data {
    ($($handle:ty: $function:path;)*) => { $( impl $handle {
        /// What was set there, or null.
        #[inline]
        pub fn data(&self, index: c_int) -> *mut c_void {
            // SAFETY: the object is valid; any index is good for asking.
            unsafe { $function(self.as_ptr(), index) }
        }
    } )* };
}

data! {
    SslRef: SSL_get_ex_data;
    CtxRef: SSL_CTX_get_ex_data;
}

impl SslRef {
    /// The certificate that the other side has shown.
    pub fn peer_certificate(&self) -> Option<Certificate> {
        // SAFETY: the object is valid; the certificate is counted up, or null.
        unsafe { owned(SSL_get1_peer_certificate(self.as_ptr())) }
    }
}

/// # Safety
/// `raw` is ours to free, or null.
unsafe fn owned<T: ForeignType>(raw: *mut T::CType) -> Option<T> {
    // SAFETY: the caller's.
    (!raw.is_null()).then(|| unsafe { T::from_ptr(raw) })
}

macro_rules! sha256 {
    ($($handle:ty: $function:path;)*) => { $( impl $handle {
        /// Its SHA-256. `None` without memory.
        pub fn sha256(&self) -> Option<[u8; 32]> {
            let (mut digest, mut len): (_, c_uint) = ([0; 32], 0);
            // SAFETY: the object is valid, and there is room for that digest.
            let done = unsafe {
                $function(self.as_ptr(), EVP_sha256(), digest.as_mut_ptr(), &raw mut len)
            };
            (done == 1 && len as usize == digest.len()).then_some(digest)
        }
    } )* };
}

sha256! {
    CertificateRef: X509_digest;
    CrlRef: X509_CRL_digest;
    NameRef: X509_NAME_digest;
}

impl CertificateRef {
    /// Whether it is of that IP address.
    pub fn is_of_ip(&self, address: &CStr) -> bool {
        // SAFETY: the certificate is valid; the text is only read.
        unsafe { X509_check_ip_asc(self.as_ptr(), address.as_ptr(), 0) == 1 }
    }
}

impl Time {
    /// The beginning of the epoch. `None` without memory.
    pub fn epoch() -> Option<Self> {
        // SAFETY: without one to change it makes one, which is ours.
        unsafe { owned(ASN1_TIME_set(ptr::null_mut(), 0)) }
    }
}

impl TimeRef {
    /// How many seconds it is until then from another moment, or from now. `None` if one of them cannot be
    /// read.
    pub fn seconds_from(&self, from: Option<&TimeRef>) -> Option<i64> {
        let (mut days, mut seconds) = (0, 0);
        let from = from.map_or(ptr::null(), |from| from.as_ptr().cast_const());
        // SAFETY: both are valid, and null is now; it writes two numbers.
        let done = unheard(|| unsafe {
            ASN1_TIME_diff(&raw mut days, &raw mut seconds, from, self.as_ptr())
        });
        let seconds = i64::from(days).saturating_mul(86_400).saturating_add(seconds.into());
        (done == 1).then_some(seconds)
    }
}

impl Algorithm {
    /// Looks for it in OpenSSL's default context: its configuration says which providers there are.
    pub fn fetch(name: &CStr) -> Option<Self> {
        // SAFETY: the name is only read; what is found is counted up, or null.
        unsafe { owned(EVP_CIPHER_fetch(ptr::null_mut(), name.as_ptr(), ptr::null())) }
    }
}

impl Cipher {
    /// One that does nothing yet. `None` without memory.
    pub fn new() -> Option<Self> {
        // SAFETY: what is made is ours, or null.
        unsafe { owned(EVP_CIPHER_CTX_new()) }
    }
}

impl Digest {
    fn fetch(name: &CStr) -> Option<Self> {
        // SAFETY: as for an Algorithm.
        unsafe { owned(EVP_MD_fetch(ptr::null_mut(), name.as_ptr(), ptr::null())) }
    }
}

impl Suite {
    /// Whether a provider has its algorithms, as OpenSSL looks for them when it makes a context
    /// (`ssl_load_ciphers()`).
    pub fn is_available(&self) -> bool {
        let name = |nid| {
            // SAFETY: the names of what cipher suites consist of are static.
            let name = unsafe { OBJ_nid2sn(nid) };
            // SAFETY: as above.
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })
        };
        unheard(|| {
            let (algorithm, digest) = (self.algorithm(), self.digest());
            let encrypts =
                algorithm == NID_undef || name(algorithm).and_then(Algorithm::fetch).is_some();
            let authenticates =
                digest == NID_undef || name(digest).and_then(Digest::fetch).is_some();
            encrypts && authenticates
        })
    }
}

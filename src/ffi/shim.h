/*
 * What Rust cannot read in the headers of OpenSSL and nginx: macros that are code, and numbers that are
 * expressions. build.rs makes src/ffi/shim.rs of it, where NAME(it) is called "it"; nothing else includes
 * this file.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#define NAME(it) ngx_http_ssl_session_##it


static const uint64_t NAME(SSL_OP_NO_ANTI_REPLAY) = SSL_OP_NO_ANTI_REPLAY;
static const uint64_t NAME(SSL_OP_NO_EXTENDED_MASTER_SECRET) =
    SSL_OP_NO_EXTENDED_MASTER_SECRET;


static inline int
NAME(BIO_should_retry)(BIO *bio)
{
    return BIO_should_retry(bio);
}


/* BIO_copy_next_retry() for BIOs that are not chained. */
static inline void
NAME(BIO_copy_retry)(BIO *to, BIO *from)
{
    BIO_clear_retry_flags(to);
    BIO_set_flags(to, BIO_get_retry_flags(from));
    BIO_set_retry_reason(to, BIO_get_retry_reason(from));
}


static inline long
NAME(SSL_CTX_get_session_cache_mode)(SSL_CTX *ctx)
{
    return SSL_CTX_get_session_cache_mode(ctx);
}


/* Null unless one was set. */
static inline X509_STORE *
NAME(SSL_CTX_get0_verify_cert_store)(SSL_CTX *ctx)
{
    X509_STORE *store = NULL;

    (void) SSL_CTX_get0_verify_cert_store(ctx, &store);
    return store;
}


static inline long
NAME(SSL_CTX_set_current_cert)(SSL_CTX *ctx, long which)
{
    return SSL_CTX_set_current_cert(ctx, which);
}


static inline long
NAME(SSL_CTX_select_current_cert)(SSL_CTX *ctx, X509 *certificate)
{
    return SSL_CTX_select_current_cert(ctx, certificate);
}


static inline size_t
NAME(SSL_get0_raw_cipherlist)(SSL *ssl, const unsigned char **list)
{
    long len;

    len = SSL_get0_raw_cipherlist(ssl, list);
    return len > 0 ? (size_t) len : 0;
}

/*
 * What Rust cannot read in the headers of OpenSSL and nginx: macros that are code, and numbers that are
 * expressions. build.rs makes src/ffi/shim.rs of it, where NAME(it) is called "it"; nothing else includes
 * this file. What only some nginx have is behind a macro NGINX_... that build.rs defines.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>
#if (NGX_STREAM_SSL)
#include <ngx_stream.h>
#endif
#if (NGX_QUIC)
#include <ngx_event_quic_connection.h>
#endif

#include <stdbool.h>

#define NAME(it) ngx_http_ssl_session_##it


static const uint64_t NAME(SSL_OP_CLEANSE_PLAINTEXT) = SSL_OP_CLEANSE_PLAINTEXT;
static const uint64_t NAME(SSL_OP_NO_ANTI_REPLAY) = SSL_OP_NO_ANTI_REPLAY;
static const uint64_t NAME(SSL_OP_NO_EXTENDED_MASTER_SECRET) =
    SSL_OP_NO_EXTENDED_MASTER_SECRET;


/* The version of the OpenSSL that runs. */
static inline const char *
NAME(openssl_running)(void)
{
    return OpenSSL_version(OPENSSL_FULL_VERSION_STRING);
}


/* The version of the OpenSSL whose headers these are. */
static inline const char *
NAME(openssl_built)(void)
{
    return OPENSSL_FULL_VERSION_STR;
}


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


/*
 * nginx. Bit-fields are read and written here alone: bindgen takes one for adjacent to the one before, also
 * where C keeps it out of the next word.
 */


/* Types of functions that are found by name at run time. Where nginx declares another, nothing is built. */
#define IS_OF(type, function)                                                 \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), type), \
                   #function " is of another type")

/* OpenResty's patch has it. */
typedef SSL_SESSION *(*NAME(SSL_magic_pending_session_ptr))(void);
#ifdef SSL_ERROR_PENDING_SESSION
IS_OF(NAME(SSL_magic_pending_session_ptr), SSL_magic_pending_session_ptr);
#endif

/* Tengine has it, with its module for ingress. */
typedef int (*NAME(http_client_hello))(SSL *ssl, int *alert, void *argument);
#ifdef T_INGRESS_SHARED_MEMORY_PB
IS_OF(NAME(http_client_hello), ngx_http_ssl_client_hello_callback);
#endif

#if (NGX_STREAM_SSL)
typedef ngx_stream_variable_t *(*NAME(stream_add_variable))(ngx_conf_t *cf,
    ngx_str_t *name, ngx_uint_t flags);
IS_OF(NAME(stream_add_variable), ngx_stream_add_variable);
#endif

typedef void (*NAME(quic_close_connection))(ngx_connection_t *c, ngx_int_t rc);
#if (NGX_QUIC)
IS_OF(NAME(quic_close_connection), ngx_quic_close_connection);
#endif

/* Only our patch for 1.29 and later shows it. */
typedef ngx_int_t (*NAME(quic_handshake))(ngx_connection_t *c);
#ifdef NGINX_QUIC_HANDSHAKE
IS_OF(NAME(quic_handshake), ngx_quic_handshake);
#endif


/* Timers and posted events. */

static inline bool
NAME(timer_is_set)(const ngx_event_t *event)
{
    return event->timer_set;
}


/* Keeps a timer that is set for nearly the same time. */
static inline void
NAME(add_timer)(ngx_event_t *event, ngx_msec_t delay)
{
    ngx_add_timer(event, delay);
}


/* Takes a timer back, if there is one. */
static inline void
NAME(del_timer)(ngx_event_t *event)
{
    if (event->timer_set) {
        ngx_del_timer(event);
    }
}


static inline void
NAME(set_cancelable)(ngx_event_t *event, bool cancelable)
{
    event->cancelable = cancelable;
}


static inline bool
NAME(is_posted)(const ngx_event_t *event)
{
    return event->posted;
}


static inline void
NAME(post_event)(ngx_event_t *event, ngx_queue_t *queue)
{
    ngx_post_event(event, queue);
}


/* Takes it back, if it was posted. */
static inline void
NAME(delete_posted_event)(ngx_event_t *event)
{
    if (event->posted) {
        ngx_delete_posted_event(event);
    }
}


/* Connections. */

static inline bool
NAME(is_ready)(const ngx_event_t *event)
{
    return event->ready;
}


/* Whether the event method knows that the other side has closed. */
static inline bool
NAME(is_pending_eof)(const ngx_event_t *event)
{
    return event->pending_eof;
}


static inline bool
NAME(is_closing)(const ngx_connection_t *c)
{
    return c->close;
}


/* Whether nginx closes it although it has something to do (ngx_shutdown_timer_handler()). */
static inline bool
NAME(is_overdue)(const ngx_connection_t *c)
{
    return c->close && c->error;
}


static inline void
NAME(set_idle)(ngx_connection_t *c)
{
    c->idle = 1;
}


/* What fails by the network is logged as "info". */
static inline void
NAME(set_log_error_info)(ngx_peer_connection_t *peer)
{
    peer->log_error = NGX_ERROR_INFO;
}


/* Closing does not wait for the other side. Nor does it say so to it, if it is quiet, or nginx has found
   an error. */
static inline void
NAME(set_shutdown)(ngx_ssl_connection_t *ssl, bool quiet)
{
    ssl->no_wait_shutdown = 1;
    if (quiet) {
        ssl->no_send_shutdown = 1;
    }
}


/* Addresses, the resolver, and shared memory. */

/* A name is read, and not looked up. */
static inline void
NAME(set_no_resolve)(ngx_url_t *url, bool no_resolve)
{
    url->no_resolve = no_resolve;
}


/* Null without memory or name servers; an exiting worker does not wait for the answer. */
static inline ngx_resolver_ctx_t *
NAME(resolve_start)(ngx_resolver_t *resolver)
{
    ngx_resolver_ctx_t *ctx;

    ctx = ngx_resolve_start(resolver, NULL);
    if (ctx == NULL || ctx == NGX_NO_RESOLVER) {
        return NULL;
    }
    ctx->cancelable = 1;
    return ctx;
}


/* Lets nginx write no line when there is no memory left. */
static inline void
NAME(slab_be_quiet)(ngx_slab_pool_t *pool)
{
    pool->log_nomem = 0;
}


/* Listening sockets. */

static inline bool
NAME(http_is_tls)(const ngx_http_conf_addr_t *addr)
{
    return addr->opt.ssl;
}


static inline bool
NAME(http_is_quic)(const ngx_http_conf_addr_t *addr)
{
#ifdef NGINX_HTTP_QUIC
    return addr->opt.quic;
#else
    return false;
#endif
}


#if (NGX_STREAM_SSL)

/* What stream{} has for a socket: since it has virtual servers, what http{} has. */
#ifdef NGINX_STREAM_SERVERS

static inline bool
NAME(stream_is_tls)(const ngx_stream_conf_addr_t *addr)
{
    return addr->opt.ssl;
}

#else

static inline bool
NAME(stream_is_tls)(const ngx_stream_listen_t *listen)
{
    return listen->ssl;
}

#endif
#endif


/* Requests and variables. */

/* Whether no body goes with the header: known once that was sent. */
static inline bool
NAME(is_header_only)(const ngx_http_request_t *r)
{
    return r->header_only;
}


/* As nginx itself ends an answer of one buffer (ngx_http_send_response()). */
static inline void
NAME(set_last)(ngx_buf_t *buf, bool is_main)
{
    buf->last_buf = is_main;
    buf->last_in_chain = 1;
    buf->sync = !is_main && buf->pos == buf->last;
}


/* Without text there is no value: "-" in a log. */
static inline void
NAME(set_variable)(ngx_variable_value_t *value, u_char *text, size_t len)
{
    if (text == NULL) {
        value->not_found = 1;
        return;
    }
    value->len = (unsigned) len;
    value->valid = 1;
    value->no_cacheable = 0;
    value->not_found = 0;
    value->data = text;
}

/*
 * Loaded before OpenSSL (LD_PRELOAD), in place of its patch for OpenResty: a callback of somebody else's
 * answers each question for a session with an order to ask again later. That is a pointer to no session:
 * here to a page that cannot be read.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/mman.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_session_st SSL_SESSION;
typedef SSL_SESSION *get_cb(SSL *, const unsigned char *, int, int *);

SSL_SESSION *
SSL_magic_pending_session_ptr(void)
{
    static void  *page;

    if (page == NULL) {
        page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);
    }
    return page;
}

static SSL_SESSION *
pending(SSL *ssl, const unsigned char *id, int len, int *copy)
{
    (void) ssl; (void) id; (void) len;
    *copy = 0;
    return SSL_magic_pending_session_ptr();
}

static get_cb  *module;

/* What OpenSSL calls. The patched one would leave the handshake here; this one goes on without. */
static SSL_SESSION *
ask(SSL *ssl, const unsigned char *id, int len, int *copy)
{
    SSL_SESSION  *session = module(ssl, id, len, copy);

    if (session == SSL_magic_pending_session_ptr()) {
        fprintf(stderr, "the session is pending\n");
        return NULL;
    }
    return session;
}

get_cb *
SSL_CTX_sess_get_get_cb(SSL_CTX *ctx)
{
    (void) ctx;
    return pending;
}

void
SSL_CTX_sess_set_get_cb(SSL_CTX *ctx, get_cb *cb)
{
    void  (*set)(SSL_CTX *, get_cb *);

    *(void **) &set = dlsym(RTLD_NEXT, "SSL_CTX_sess_set_get_cb");
    /* With ours the module puts back what it has found. */
    if (cb != pending) {
        module = cb;
        cb = ask;
    }
    set(ctx, cb);
}

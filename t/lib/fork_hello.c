/*
 * Loaded before nginx (LD_PRELOAD): shows what Tengine shows with its module for ingress, the callback for
 * the ClientHello of all contexts of http{}. Tengine sets it without an argument.
 */

#include <stdio.h>
#include <stdlib.h>

int
ngx_http_ssl_client_hello_callback(void *ssl, int *alert, void *argument)
{
    if (ssl == NULL || alert == NULL || argument != NULL) {
        abort();
    }
    fprintf(stderr, "the fork has read the ClientHello\n");
    return 1;    /* SSL_CLIENT_HELLO_SUCCESS */
}

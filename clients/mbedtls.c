/* mbed TLS: URL N. The session is kept by the program, as its users do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

static mbedtls_ssl_config conf;
static mbedtls_ssl_session session;
static int kept;

static int visit(const char *port)
{
    const char *request = "GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n";
    unsigned char buf[4096];
    mbedtls_net_context net;
    mbedtls_ssl_context ssl;
    int n;

    mbedtls_net_init(&net);
    mbedtls_ssl_init(&ssl);
    if ((n = mbedtls_net_connect(&net, "127.0.0.1", port, MBEDTLS_NET_PROTO_TCP)) != 0) return n;
    if ((n = mbedtls_ssl_setup(&ssl, &conf)) != 0) return n;
    mbedtls_ssl_set_hostname(&ssl, "localhost");
    mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
    if (kept) mbedtls_ssl_set_session(&ssl, &session);
    if ((n = mbedtls_ssl_handshake(&ssl)) != 0) return n;
    if (kept) mbedtls_ssl_session_free(&session);
    mbedtls_ssl_session_init(&session);
    kept = mbedtls_ssl_get_session(&ssl, &session) == 0;
    mbedtls_ssl_write(&ssl, (const unsigned char *) request, strlen(request));
    while ((n = mbedtls_ssl_read(&ssl, buf, sizeof(buf))) > 0) fwrite(buf, 1, n, stdout);
    mbedtls_ssl_close_notify(&ssl);
    mbedtls_ssl_free(&ssl);
    mbedtls_net_free(&net);
    return 0;
}

int main(int argc, char **argv)
{
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context drbg;
    mbedtls_x509_crt ca;
    char *port = strrchr(argv[1], ':') + 1;
    int n;

    port[strcspn(port, "/")] = 0;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&drbg);
    mbedtls_ctr_drbg_seed(&drbg, mbedtls_entropy_func, &entropy, NULL, 0);
    mbedtls_x509_crt_init(&ca);
    mbedtls_x509_crt_parse_file(&ca, getenv("CLIENT_CA"));
    mbedtls_ssl_config_init(&conf);
    mbedtls_ssl_config_defaults(&conf, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    mbedtls_ssl_conf_rng(&conf, mbedtls_ctr_drbg_random, &drbg);
    mbedtls_ssl_conf_ca_chain(&conf, &ca, NULL);
    for (n = atoi(argv[2]); n > 0; n--) {
        int error = visit(port);
        if (error) {
            printf("error -0x%04x\n", -error);
            return 1;
        }
    }
    return 0;
}

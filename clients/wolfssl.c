/* wolfSSL: default|tickets URL N. The session is kept by the program, as its users do; a ticket of TLS
   1.2 is asked for with wolfSSL_CTX_UseSessionTicket(). */
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

static WOLFSSL_CTX *ctx;
static WOLFSSL_SESSION *session;

static int visit(int port)
{
    const char *request = "GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n";
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
    int fd = socket(AF_INET, SOCK_STREAM, 0), n;
    WOLFSSL *ssl = wolfSSL_new(ctx);
    char buf[4096];

    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    if (connect(fd, (struct sockaddr *) &to, sizeof(to)) != 0) return 1;
    wolfSSL_UseSNI(ssl, WOLFSSL_SNI_HOST_NAME, "localhost", 9);
    wolfSSL_check_domain_name(ssl, "localhost");
    wolfSSL_set_fd(ssl, fd);
    if (session) wolfSSL_set_session(ssl, session);
    if (wolfSSL_connect(ssl) != WOLFSSL_SUCCESS) {
        printf("error %d\n", wolfSSL_get_error(ssl, 0));
        return 1;
    }
    wolfSSL_write(ssl, request, strlen(request));
    while ((n = wolfSSL_read(ssl, buf, sizeof(buf))) > 0) fwrite(buf, 1, n, stdout);
    if (session) wolfSSL_SESSION_free(session);
    session = wolfSSL_get1_session(ssl);
    wolfSSL_shutdown(ssl);
    wolfSSL_free(ssl);
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    int n;

    wolfSSL_Init();
    ctx = wolfSSL_CTX_new(wolfTLS_client_method());
    wolfSSL_CTX_load_verify_locations(ctx, getenv("CLIENT_CA"), NULL);
    if (!strcmp(argv[1], "tickets")) wolfSSL_CTX_UseSessionTicket(ctx);
    for (n = atoi(argv[3]); n > 0; n--) {
        if (visit(atoi(strrchr(argv[2], ':') + 1))) return 1;
    }
    return 0;
}

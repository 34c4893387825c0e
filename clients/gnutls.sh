#!/bin/bash
# gnutls-cli --resume: URL. It makes two connections, and says what it is given in the second one.
set -eu
port=${1##*:}
port=${port%%/*}
printf 'GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n' |
    gnutls-cli --resume --waitresumption --x509cafile "$CLIENT_CA" --port "$port" localhost

#!/bin/bash
# openssl s_client with a file for its session: URL N P.
set -eu
port=${1##*:} file=$(mktemp)
port=${port%%/*}
visit() {
    printf 'GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n' |
        openssl s_client -quiet -ign_eof -CAfile "$CLIENT_CA" -connect "127.0.0.1:$port" -servername localhost "$@" 2>/dev/null
}
visit -sess_out "$file"
for _ in $(seq 2 "$2"); do
    visit -sess_in "$file" -sess_out "$file"
done
for _ in $(seq 1 "$3"); do
    visit -sess_in "$file" &
done
wait
rm -f "$file"

#!/bin/bash
# tstclnt of NSS: tickets|ids URL N.
set -eu
port=${2##*:}
port=${port%%/*}
dir=$(mktemp -d)
certutil -N -d "sql:$dir" --empty-password
certutil -A -d "sql:$dir" -n ca -t C,, -i "$CLIENT_CA"
printf 'GET /visit HTTP/1.0\r\nHost: localhost\r\n\r\n' >"$dir/request"
more=()
[ "$1" = ids ] || more=(-u)
tstclnt -d "sql:$dir" -h localhost -p "$port" -4 -L "$3" -A "$dir/request" "${more[@]}"
rm -rf "$dir"

#!/bin/bash
# The health check of the image: whether the process lives, not whether it is ready, since a restart does not help while
# Postgres or Redis is unreachable. The admin listener answers while the public one has no connection left; without it the
# check only opens a connection to the public one. It starts no process: one that outlived it would be a child of the engine,
# which waits for none.
set -eu

listen=${POSDUIF__ADMIN__LISTEN:-127.0.0.1:8081}
if [[ $listen == off ]]; then
    host=${POSDUIF__SERVER__HOST:-127.0.0.1} port=${POSDUIF__SERVER__PORT:-8080}
else
    host=${listen%:*} port=${listen##*:}
fi
host=${host#[} host=${host%]}
case $host in
    0.0.0.0) host=127.0.0.1 ;;
    ::) host=::1 ;;
esac

exec 3<>"/dev/tcp/$host/$port"
if [[ $listen != off ]]; then
    printf 'GET /health HTTP/1.0\r\n\r\n' >&3
    read -r -t 2 status <&3
    [[ $status == *' 200 '* ]]
fi

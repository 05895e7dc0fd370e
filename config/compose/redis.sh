#!/bin/sh
# Starts Redis with a user for the engine and none for others. The settings come by standard input, so that the password is
# on no command line. The rights are those of docs/operations.md, with those of operators.
set -eu

password=$(cat "${REDIS_PASSWORD_FILE:?}")
exec redis-server "$@" - <<EOF
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
latency-tracking no
maxmemory ${REDIS_MAXMEMORY:-1gb}
user default off resetpass -@all
user posduif on >$password ~posduif:* resetchannels &posduif:* -@all +multi +exec +watch +unwatch +discard +hset +hmset +hget +hmget +hgetall +hsetnx +hincrby +hdel +del +unlink +memory|usage +exists +expire +xadd +xtrim +xlen +xrange +xrevrange +xread +zadd +zrem +zscore +zcard +zrange +zrevrange +zremrangebyscore +zrangebyscore +eval +time +get +getdel +set +setex +incr +ttl +pttl +pexpire +sadd +srem +scard +srandmember +smembers +sscan +publish +subscribe +info +ping +select +config|get +xinfo +waitaof +type +scan +xgroup +xpending +xdel
EOF

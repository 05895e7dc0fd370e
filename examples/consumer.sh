#!/usr/bin/env bash
# A consumer of a tenant's changes: hands each entry to a command, at least once, in order, and goes on where it was.
#
#   REDIS_URL=redis://127.0.0.1:6379/0 examples/consumer.sh KEY GROUP CONSUMER COMMAND [ARGUMENT...]
#
# The command gets one line on stdin, ["<ID>",["op","insert","schema",...]], and what it has done counts when it exits
# with 0; otherwise the entry comes again. docs/consumers.md tells what it must be ready for.
set -euo pipefail

key=$1 group=$2 consumer=$3
shift 3

redis() { redis-cli ${REDIS_URL:+-u "$REDIS_URL"} --no-auth-warning --json -e "$@" 2>&1; }

after=0 # first the entries delivered before and not acknowledged
while true; do
    if ! reply=$(redis XREADGROUP GROUP "$group" "$consumer" COUNT 1 BLOCK 2000 STREAMS "$key" "$after"); then
        case $reply in
        # The stream was recreated without its groups: start with its first entry, a `reset`.
        *NOGROUP*) redis XGROUP CREATE "$key" "$group" 0 >/dev/null || sleep 1 ;;
        *) echo "consumer: $reply" >&2 && sleep 1 ;;
        esac
        after=0
        continue
    fi
    if [[ $reply != *'[["'* ]]; then
        # No new entry: claim entries that another consumer has not acknowledged for a minute.
        if [[ $after != 0 ]]; then
            redis XAUTOCLAIM "$key" "$group" "$consumer" 60000 0 >/dev/null || true
            after=0
        else
            after='>'
        fi
        continue
    fi
    id=${reply#*'[["'}
    id=${id%%'"'*}
    entry=${reply#*'[['}
    # An entry that was trimmed meanwhile is null: it is lost, and acknowledged so that it does not come again.
    if [[ $entry == "\"$id\",null"* ]] || printf '[%s]\n' "${entry%]]*}" | "$@"; then
        redis XACK "$key" "$group" "$id" >/dev/null
    else
        echo "consumer: the command failed for $id; it comes again" >&2
        after=0
        sleep 1
    fi
done

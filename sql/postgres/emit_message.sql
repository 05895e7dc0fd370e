-- Writes a message to the log, in a transaction of its own unless there is one. $1: prefix, $2: content.
SELECT pg_logical_emit_message(true, $1, $2) AS lsn

-- One heartbeat: what a snapshot sees just before, then a message in this transaction's place in the log.
-- $1: prefix that names the slot.
SELECT pg_current_snapshot()::text AS snapshot, pg_logical_emit_message(true, $1, '') AS lsn

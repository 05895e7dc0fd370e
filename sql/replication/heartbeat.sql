-- One heartbeat: the end of the log and the snapshot before it, then a message at this transaction's position in the log; and
-- the state of the slot, whose row is all NULL while there is none.
-- $1: prefix that names the slot. $2: slot name.
SELECT pg_current_snapshot()::text AS snapshot, pg_current_wal_insert_lsn() AS wal_position,
       pg_logical_emit_message(true, $1, '') AS lsn,
       slot.restart_lsn, slot.wal_status, slot.safe_wal_size
FROM (VALUES ($2)) AS wanted (slot_name) LEFT JOIN pg_replication_slots AS slot USING (slot_name)

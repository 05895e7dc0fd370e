-- One heartbeat: the end of the log and the snapshot before it, then a message at this transaction's position in the log; and
-- the state of the slot, whose row is all NULL while there is none, with whether its walsender works, and does not wait for
-- the client or for the log.
-- $1: prefix that names the slot. $2: slot name.
SELECT pg_current_snapshot()::text AS snapshot, pg_current_wal_insert_lsn() AS wal_position,
       pg_logical_emit_message(true, $1, '') AS lsn,
       slot.restart_lsn, slot.wal_status, slot.safe_wal_size,
       EXISTS (SELECT FROM pg_stat_activity sender
               WHERE sender.pid = slot.active_pid AND sender.state = 'active'
                 AND coalesce(sender.wait_event_type, '') NOT IN ('Client', 'Activity')) AS is_working
FROM (VALUES ($2)) AS wanted (slot_name) LEFT JOIN pg_replication_slots AS slot USING (slot_name)

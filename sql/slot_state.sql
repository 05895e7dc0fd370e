-- Where a replication slot stands. $1: slot name.
SELECT confirmed_flush_lsn, coalesce(wal_status, 'unknown') AS wal_status, plugin, database
FROM pg_replication_slots WHERE slot_name = $1

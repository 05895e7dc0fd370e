-- Where a replication slot stands. $1: slot name. Why it was lost is told from Postgres 17 on.
SELECT confirmed_flush_lsn, coalesce(wal_status, 'unknown') AS wal_status, plugin, database,
       to_jsonb(slot) ->> 'invalidation_reason' AS lost_by
FROM pg_replication_slots slot WHERE slot_name = $1

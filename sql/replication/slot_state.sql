-- The state of a replication slot. $1: slot name. Postgres 17 and newer report the reason of an invalidation.
SELECT confirmed_flush_lsn, coalesce(wal_status, 'unknown') AS wal_status, plugin, database,
       to_jsonb(slot) ->> 'invalidation_reason' AS lost_by
FROM pg_replication_slots slot WHERE slot_name = $1

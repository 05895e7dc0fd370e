-- The end of the log, the limits of slots, and every replication slot of the server with its reader; one row without a name if
-- there is no slot. A limit is NULL where there is none, or the server's release does not have it. Columns of newer releases
-- (17: failover, synced, inactive_since, invalidation_reason) are NULL where they are missing.
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS wal_position,
       pg_is_in_recovery() AS is_standby,
       (SELECT setting::bigint * 1024 * 1024 FROM pg_settings
        WHERE name = 'max_slot_wal_keep_size' AND setting::bigint >= 0) AS keep_bytes,
       (SELECT setting::float8 FROM pg_settings
        WHERE name = 'idle_replication_slot_timeout' AND setting::bigint > 0) AS idle_timeout_seconds,
       slot.slot_name::text AS name, slot.slot_type, slot.plugin::text, slot.database::text,
       coalesce(slot.database = current_database(), false) AS is_here, slot.temporary,
       slot.active, slot.active_pid, reader.application_name, host(reader.client_addr) AS address,
       slot.restart_lsn, slot.confirmed_flush_lsn, slot.wal_status, slot.safe_wal_size,
       extract(epoch FROM reader.flush_lag)::float8 AS lag_seconds,
       (to_jsonb(slot) ->> 'failover')::boolean AS failover,
       (to_jsonb(slot) ->> 'synced')::boolean AS synced,
       extract(epoch FROM now() - (to_jsonb(slot) ->> 'inactive_since')::timestamptz)::float8 AS inactive_seconds,
       to_jsonb(slot) ->> 'invalidation_reason' AS invalidation_reason
FROM (VALUES (1)) AS one (row)
LEFT JOIN pg_replication_slots slot ON true
LEFT JOIN pg_stat_replication reader ON reader.pid = slot.active_pid
ORDER BY slot.slot_name

-- Every replication slot of the server, with its reader. Columns of newer releases (17: failover, synced, inactive_since,
-- invalidation_reason) are NULL where they are missing.
SELECT slot.slot_name::text AS name, slot.slot_type, slot.plugin::text, slot.database::text,
       coalesce(slot.database = current_database(), false) AS is_here, slot.temporary,
       slot.active, slot.active_pid, reader.application_name, host(reader.client_addr) AS address,
       slot.restart_lsn, slot.confirmed_flush_lsn, slot.wal_status, slot.safe_wal_size,
       extract(epoch FROM reader.flush_lag)::float8 AS lag_seconds,
       (to_jsonb(slot) ->> 'failover')::boolean AS failover,
       (to_jsonb(slot) ->> 'synced')::boolean AS synced,
       extract(epoch FROM now() - (to_jsonb(slot) ->> 'inactive_since')::timestamptz)::float8 AS inactive_seconds,
       to_jsonb(slot) ->> 'invalidation_reason' AS invalidation_reason
FROM pg_replication_slots slot
LEFT JOIN pg_stat_replication reader ON reader.pid = slot.active_pid
ORDER BY slot.slot_name

-- The end of the log and the limits of slots. NULL where there is no limit, or the server's release does not have it.
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS wal_position,
       pg_is_in_recovery() AS is_standby,
       (SELECT setting::bigint * 1024 * 1024 FROM pg_settings
        WHERE name = 'max_slot_wal_keep_size' AND setting::bigint >= 0) AS keep_bytes,
       (SELECT setting::float8 FROM pg_settings
        WHERE name = 'idle_replication_slot_timeout' AND setting::bigint > 0) AS idle_timeout_seconds

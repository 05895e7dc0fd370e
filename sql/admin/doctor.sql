-- The settings of the server and the attributes of the role on which an engine depends. NULL where there is no bound, or
-- the server's release does not have the setting.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       current_setting('server_encoding') AS encoding, current_setting('wal_level') AS wal_level,
       pg_is_in_recovery() AS is_standby,
       current_setting('max_replication_slots')::int AS slots_max,
       (SELECT count(*)::int FROM pg_replication_slots) AS slots_used,
       current_setting('max_wal_senders')::int AS senders_max,
       (SELECT count(*)::int FROM pg_stat_replication) AS senders_used,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           AS connections_max,
       current_database()::text AS database, current_user::text AS role,
       own.rolsuper AS is_superuser,
       own.rolsuper OR own.rolreplication OR EXISTS (
           -- Amazon gives the right by membership.
           SELECT FROM pg_roles theirs WHERE theirs.rolname = 'rds_replication' AND pg_has_role(current_user, theirs.oid, 'MEMBER')
       ) AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       clock_timestamp() AS now
FROM pg_roles own
WHERE own.rolname = current_user

-- Whether a slot can be created as a failover slot: Postgres 17 or newer, and no standby.
SELECT current_setting('server_version_num')::int >= 170000 AND NOT pg_is_in_recovery() AS can_failover

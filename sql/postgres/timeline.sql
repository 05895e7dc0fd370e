-- The server's timeline; 0 of a standby, which has none of its own.
SELECT CASE
    WHEN pg_is_in_recovery() THEN 0
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
END AS timeline

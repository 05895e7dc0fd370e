-- The snapshot of the statement, a lower bound of what later statements see; the end of the write-ahead log and the
-- server's timeline, both 0 of a standby.
SELECT
    pg_current_snapshot()::text AS snapshot,
    CASE WHEN pg_is_in_recovery() THEN '0/0'::pg_lsn ELSE pg_current_wal_insert_lsn() END AS lsn,
    CASE
        WHEN pg_is_in_recovery() THEN 0
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
    END AS timeline

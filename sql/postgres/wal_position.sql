-- The end of the write-ahead log, and the time.
SELECT pg_current_wal_insert_lsn() AS lsn, now() AS now

-- Where the write-ahead log ends, and the time.
SELECT pg_current_wal_insert_lsn() AS lsn, now() AS now

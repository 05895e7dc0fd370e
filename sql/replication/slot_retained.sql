-- Bytes of WAL that Postgres retains for a slot; NULL for a lost one. $1: slot name.
SELECT (pg_current_wal_lsn() - restart_lsn)::bigint AS bytes FROM pg_replication_slots WHERE slot_name = $1

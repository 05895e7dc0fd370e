-- Moves an inactive slot forward: what lies before is never decoded by it. $1: slot name; $2: where to.
SELECT end_lsn FROM pg_replication_slot_advance($1, $2)

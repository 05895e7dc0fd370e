-- Advances an inactive slot: it never decodes earlier changes. $1: slot name; $2: position.
SELECT end_lsn FROM pg_replication_slot_advance($1, $2)

-- Creates a logical slot that decodes with pgoutput. $1: slot name.
SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')

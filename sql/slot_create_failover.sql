-- Makes a logical slot that decodes with pgoutput and that standbys may keep a copy of (Postgres 17). $1: slot name.
SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput', failover => true)

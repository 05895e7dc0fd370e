-- Creates a logical slot that decodes with pgoutput and that standbys synchronize, for a failover (Postgres 17 and newer).
-- $1: slot name.
SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput', temporary => false, twophase => false, failover => true)

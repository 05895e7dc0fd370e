-- Takes the lock over all work on schemas until the transaction ends. $1 bigint: key.
SELECT pg_advisory_xact_lock($1)

-- Takes the lock over all work on schemas until the session ends. $1 bigint: key.
SELECT pg_advisory_lock($1)

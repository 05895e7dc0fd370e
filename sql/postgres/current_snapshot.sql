-- The snapshot of the statement, a lower bound of what later statements see.
SELECT pg_current_snapshot()::text AS snapshot

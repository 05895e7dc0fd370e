-- What statements from here on see at least.
SELECT pg_current_snapshot()::text AS snapshot

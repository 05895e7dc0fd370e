-- Sends a command to the engine, in a transaction of its own unless there is one. $1 text: name; $2 text: arguments.
-- Returns a position in the log before that of the commit.
WITH sent AS (
    INSERT INTO posduif.commands (name, arguments) VALUES ($1, $2) RETURNING id
)
SELECT pg_current_wal_insert_lsn() AS lsn FROM sent

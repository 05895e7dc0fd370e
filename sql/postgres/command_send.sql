-- Sends commands to the engine, in a transaction of its own unless there is one. $1 text[]: names; $2 text[]: arguments.
-- Returns a position in the log before that of the commit.
WITH sent AS (
    INSERT INTO posduif.commands (name, arguments)
    SELECT command.name, command.arguments FROM unnest($1::text[], $2::text[]) AS command (name, arguments)
    RETURNING id
)
SELECT pg_current_wal_insert_lsn() AS lsn FROM (SELECT count(*) FROM sent) done

-- Starts a tenant's next generation and requests its streams. $1 text: tenant; $2 text: name of the command. One row when the
-- tenant exists, with a position in the log before that of the commit.
WITH next AS (
    UPDATE posduif.tenants SET generation = generation + 1 WHERE name = $1 RETURNING name, generation, state
), sent AS (
    INSERT INTO posduif.commands (name, arguments)
    SELECT $2, name || ' ' || generation || ' ' || state FROM next
    RETURNING id
)
SELECT pg_current_wal_insert_lsn() AS lsn, generation FROM next, sent

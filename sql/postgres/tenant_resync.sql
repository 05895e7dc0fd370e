-- Starts the next generation of tenants and requests their streams. $1 text[]: tenants; $2 text: name of the command. One row
-- for each tenant that exists, with a position in the log before that of the commit.
WITH next AS (
    UPDATE posduif.tenants SET generation = generation + 1 WHERE name = ANY ($1::text[])
    RETURNING name, generation, state, lane
), sent AS (
    INSERT INTO posduif.commands (name, arguments)
    SELECT $2, name || ' ' || generation || ' ' || state || ' ' || lane FROM next
    RETURNING id
)
SELECT pg_current_wal_insert_lsn() AS lsn, generation FROM next, (SELECT count(*) FROM sent) done

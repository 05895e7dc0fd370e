-- Moves a tenant to another lane: from the position of the command in the log on, the lane that had it publishes nothing more for
-- it, and its next one creates its streams with the next generation. $1 text: tenant; $2 text: lane; $3 text: name of the
-- command. One row when the tenant existed in another lane, with a position in the log before that of the commit.
WITH moved AS (
    UPDATE posduif.tenants SET lane = $2, generation = generation + 1
    WHERE name = $1 AND lane <> $2
    RETURNING name, generation, state, lane
), sent AS (
    INSERT INTO posduif.commands (name, arguments)
    SELECT $3, name || ' ' || generation || ' ' || state || ' ' || lane FROM moved
    RETURNING id
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action, detail)
    SELECT name, 'cli', 'tenant_moved', jsonb_build_object('lane', lane) FROM moved
)
SELECT pg_current_wal_insert_lsn() AS lsn FROM moved, (SELECT count(*) FROM sent) done

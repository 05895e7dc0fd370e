-- Starts a tenant's next generation and requests its streams. $1: tenant, $2: prefix of the message.
WITH next AS (
    UPDATE posduif.tenants SET generation = generation + 1 WHERE name = $1 RETURNING name, generation, state
)
SELECT pg_logical_emit_message(true, $2, name || ' ' || generation || ' ' || state) AS lsn, generation FROM next

-- Removes a tenant from the directory, with its credentials, devices and enrollment tokens, and notifies the replicator at
-- this transaction's position in the log. $1 text: name; $2 text: prefix of the message. One row when the tenant existed.
WITH dropped AS (
    DELETE FROM posduif.tenants WHERE name = $1 RETURNING name
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action) SELECT name, 'cli', 'tenant_dropped' FROM dropped
)
SELECT pg_logical_emit_message(true, $2, name)::text AS lsn FROM dropped

-- Pauses or resumes a tenant, and notifies the replicator at this transaction's position in the log.
-- $1 text: name; $2 text: active or paused; $3 text: prefix of the message. One row when the tenant exists.
WITH changed AS (
    UPDATE posduif.tenants SET state = $2 WHERE name = $1 RETURNING name, state
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action)
    SELECT name, 'cli', CASE state WHEN 'paused' THEN 'tenant_paused' ELSE 'tenant_resumed' END FROM changed
)
SELECT pg_logical_emit_message(true, $3, name || ' ' || state) FROM changed

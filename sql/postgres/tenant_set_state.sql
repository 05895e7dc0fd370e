-- Pauses or resumes a tenant, and sends the command at this transaction's position in the log.
-- $1 text: name; $2 text: active or paused; $3 text: name of the command; $4 text: actor; $5 inet or null: address.
-- One row when the tenant exists.
WITH changed AS (
    UPDATE posduif.tenants SET state = $2 WHERE name = $1 RETURNING name, state
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, address, action)
    SELECT name, $4, $5, CASE state WHEN 'paused' THEN 'tenant_paused' ELSE 'tenant_resumed' END FROM changed
)
INSERT INTO posduif.commands (name, arguments) SELECT $3, name || ' ' || state FROM changed RETURNING id

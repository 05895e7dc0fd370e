-- Registers a tenant unless it exists; one row if it did not. $1 text: name; $2 text: schema; $3 text: lane.
WITH created AS (
    INSERT INTO posduif.tenants (name, schema_name, lane) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING RETURNING name
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action) SELECT name, 'cli', 'tenant_created' FROM created
)
SELECT name FROM created

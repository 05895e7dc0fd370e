-- Opens or closes a tenant's registration; no row when there is no such tenant. $1 text: name; $2 boolean: open.
WITH changed AS (
    UPDATE posduif.tenants SET registration_open = $2 WHERE name = $1 RETURNING name, registration_open
), audit AS (
    INSERT INTO posduif.audit (tenant, actor, action)
    SELECT name, 'cli', CASE WHEN registration_open THEN 'registration_opened' ELSE 'registration_closed' END FROM changed
)
SELECT name FROM changed

-- Opens or closes a tenant's registration; no row when there is no such tenant. $1 text: name; $2 boolean: open.
UPDATE posduif.tenants SET registration_open = $2 WHERE name = $1 RETURNING name

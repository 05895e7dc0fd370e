-- Opens or closes a tenant's registration; one row if there is such a tenant. $1 text: name; $2 boolean: open.
UPDATE posduif.tenants SET registration_open = $2 WHERE name = $1 RETURNING name

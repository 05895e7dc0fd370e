-- One row if registration is open in a tenant. $1 text: name; $2 boolean: open in every tenant.
SELECT 1 FROM posduif.tenants WHERE name = $1 AND (registration_open OR $2)

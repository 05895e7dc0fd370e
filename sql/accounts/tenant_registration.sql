-- Whether anybody may register in a tenant: one row or none. $1 text: name; $2 boolean: in any tenant.
SELECT 1 FROM posduif.tenants WHERE name = $1 AND (registration_open OR $2)

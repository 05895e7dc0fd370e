-- Whether a tenant exists: one row or none. $1 text: name.
SELECT 1 FROM posduif.tenants WHERE name = $1

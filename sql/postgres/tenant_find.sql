-- One row if a tenant exists. $1 text: name.
SELECT 1 FROM posduif.tenants WHERE name = $1

-- All tenants by name.
SELECT name, schema_name FROM posduif.tenants ORDER BY name

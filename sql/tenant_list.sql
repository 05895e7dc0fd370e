-- All tenants.
SELECT name, schema_name, state FROM posduif.tenants ORDER BY name

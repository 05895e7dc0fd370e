-- All tenants with their generation.
SELECT name, generation FROM posduif.tenants ORDER BY name

-- All tenants with their generation and state. One whose schema somebody has dropped or renamed is none any more.
SELECT name, generation, state FROM posduif.tenants
WHERE EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) ORDER BY name

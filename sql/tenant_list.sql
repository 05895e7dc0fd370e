-- All tenants by name. One whose schema somebody has dropped or renamed is none any more, and its state says so.
SELECT name, schema_name,
       CASE WHEN EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) THEN state ELSE 'schema missing' END AS state
FROM posduif.tenants ORDER BY name

-- All tenants by name, or the one of this name. $1 text: a name, or NULL. A tenant whose schema was dropped or renamed has the
-- state `schema missing`.
SELECT name, schema_name,
       CASE WHEN EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) THEN state ELSE 'schema missing' END AS state
FROM posduif.tenants
WHERE $1 IS NULL OR name = $1
ORDER BY name

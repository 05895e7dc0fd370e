-- All tenants by name, the one of this name, or those of a lane. $1 text: a name, or NULL; $2 text: a lane, or NULL. A tenant
-- whose schema was dropped or renamed has the state `schema missing`.
SELECT name, schema_name, lane,
       CASE WHEN EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) THEN state ELSE 'schema missing' END AS state
FROM posduif.tenants
WHERE ($1 IS NULL OR name = $1) AND ($2 IS NULL OR lane = $2)
ORDER BY name

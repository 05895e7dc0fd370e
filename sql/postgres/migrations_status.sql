-- The version of every schema, the control schema first, and whether the schema exists.
SELECT schema_name, version, dirty, EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) AS exists
FROM posduif.schema_migrations ORDER BY schema_name <> 'posduif', schema_name

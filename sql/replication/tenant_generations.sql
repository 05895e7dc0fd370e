-- The tenants whose schema exists, with their generation and state.
SELECT name, generation, state FROM posduif.tenants
WHERE EXISTS (SELECT FROM pg_namespace WHERE nspname = schema_name) ORDER BY name

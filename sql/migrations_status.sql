-- The version of every schema, the control schema first.
SELECT schema_name, version, dirty FROM posduif.schema_migrations ORDER BY schema_name <> 'posduif', schema_name

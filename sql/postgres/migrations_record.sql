-- Records the version of a schema. $1 text: schema; $2 int: version.
INSERT INTO posduif.schema_migrations (schema_name, version) VALUES ($1, $2)
ON CONFLICT (schema_name) DO UPDATE SET version = EXCLUDED.version, dirty = false, applied_at = now()

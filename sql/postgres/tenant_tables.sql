-- The version and the tables of each tenant schema. $1 text: name of a tenant, or NULL for all.
SELECT tenant.schema_name, coalesce(migrated.version, 0) AS version,
       ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = namespace.oid AND relkind IN ('r', 'p')) AS tables
FROM posduif.tenants tenant
JOIN pg_namespace namespace ON namespace.nspname = tenant.schema_name
LEFT JOIN posduif.schema_migrations migrated ON migrated.schema_name = tenant.schema_name
WHERE $1 IS NULL OR tenant.name = $1
ORDER BY tenant.name

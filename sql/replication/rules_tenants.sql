-- The tenants that have rows in one of these tables of their schemas. $1 text[]: tables.
SELECT tenant.name
FROM posduif.tenants tenant
WHERE EXISTS (
    SELECT FROM pg_catalog.pg_namespace schema
    JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid
    WHERE schema.nspname = tenant.schema_name AND class.relname = ANY ($1::text[])
      AND (class.relkind = 'p' OR class.relkind = 'r' AND pg_relation_size(class.oid) > 0)
)
ORDER BY tenant.name

-- The tenants whose devices may hold other rows of one of these tables of their schemas than the rules show now. $1 text[]:
-- tables; $2 text[]: those of them that had rules before. Of these devices may hold rows that are gone: the end of the table or
-- of all its rows may be in a part of the log that no engine reads by the former rules.
SELECT tenant.name
FROM posduif.tenants tenant
WHERE EXISTS (
    SELECT FROM pg_catalog.pg_namespace schema
    JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid
    WHERE schema.nspname = tenant.schema_name AND class.relname = ANY ($1::text[])
      AND (class.relkind = 'p'
           OR class.relkind = 'r' AND (class.relname = ANY ($2::text[]) OR pg_relation_size(class.oid) > 0))
) OR EXISTS (
    SELECT FROM posduif.tables known WHERE known.tenant = tenant.name AND known.root = ANY ($2::text[])
)
ORDER BY tenant.name

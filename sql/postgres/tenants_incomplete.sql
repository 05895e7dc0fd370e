-- The schemas of tenants that `migrate up` changes: the version is not the newest, a table lacks its replica identity, or
-- the publication lacks a table. One query for all tenants, since most starts change none of them. With virtual generated
-- columns (Postgres 18) the identity must not be FULL. $1 text: publication; $2 int4: newest version.
WITH published AS MATERIALIZED (
    SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1
),
virtual AS MATERIALIZED (
    SELECT DISTINCT attrelid FROM pg_catalog.pg_attribute WHERE attgenerated = 'v' AND NOT attisdropped
),
incomplete AS (
    SELECT DISTINCT schema.nspname
    FROM pg_catalog.pg_class class
    JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
    JOIN posduif.tenants tenant ON tenant.schema_name = schema.nspname
    LEFT JOIN virtual ON virtual.attrelid = class.oid
    LEFT JOIN published ON published.schemaname = schema.nspname AND published.tablename = class.relname
    WHERE class.relkind IN ('r', 'p')
      AND ((class.relreplident = 'f') = (virtual.attrelid IS NOT NULL)
           OR (NOT class.relispartition AND class.relpersistence = 'p' AND published.tablename IS NULL))
)
SELECT tenant.schema_name
FROM posduif.tenants tenant
LEFT JOIN posduif.schema_migrations migrated ON migrated.schema_name = tenant.schema_name
WHERE migrated.version IS DISTINCT FROM $2
   OR migrated.dirty
   OR tenant.schema_name IN (SELECT nspname FROM incomplete)

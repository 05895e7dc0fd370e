-- The schemas of tenants that `migrate up` changes: the version is not the newest, a table lacks its replica identity, or
-- the publication lacks a table. One query for all tenants, since most starts change none of them. The view
-- pg_publication_tables takes seconds for some ten thousand tables. With virtual generated columns (Postgres 18) the
-- identity must not be FULL. $1 text: publication; $2 int4: newest version; $3 text[]: schemas that are published whole.
WITH whole AS MATERIALIZED (
    SELECT unnest($3::text[]) AS schema_name
),
virtual AS MATERIALIZED (
    SELECT DISTINCT attrelid FROM pg_catalog.pg_attribute WHERE attgenerated = 'v' AND NOT attisdropped
),
incomplete AS (
    SELECT DISTINCT tenant.schema_name
    FROM pg_catalog.pg_class class
    JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
    JOIN posduif.tenants tenant ON tenant.schema_name = schema.nspname
    WHERE class.relkind IN ('r', 'p')
      AND ((class.relreplident = 'f') = (class.oid IN (SELECT attrelid FROM virtual))
           OR (NOT class.relispartition AND class.relpersistence = 'p'
               AND tenant.schema_name NOT IN (SELECT schema_name FROM whole)
               AND NOT EXISTS (
                   SELECT
                   FROM pg_catalog.pg_publication publication
                   LEFT JOIN pg_catalog.pg_publication_rel entry
                       ON entry.prpubid = publication.oid AND entry.prrelid = class.oid
                   WHERE publication.pubname = $1
                     AND (publication.puballtables OR entry.prrelid IS NOT NULL)
               )))
)
SELECT tenant.schema_name
FROM posduif.tenants tenant
LEFT JOIN posduif.schema_migrations migrated ON migrated.schema_name = tenant.schema_name
WHERE migrated.version IS DISTINCT FROM $2
   OR migrated.dirty
   OR tenant.schema_name IN (SELECT schema_name FROM incomplete)

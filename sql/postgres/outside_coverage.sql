-- The tables outside of tenants' schemas that are named, with their partitions of a wrong replica identity, in the form of
-- publication_coverage.sql. $1 text: publication; $2 text[], $3 text[]: schemas and names.
WITH RECURSIVE part AS (
    SELECT class.oid AS relation
    FROM unnest($2::text[], $3::text[]) AS place (schema, name)
    JOIN pg_catalog.pg_namespace schema ON schema.nspname = place.schema
    JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid AND class.relname = place.name
    WHERE class.relkind IN ('r', 'p')
    UNION
    SELECT class.oid
    FROM part
    JOIN pg_catalog.pg_inherits inheritance ON inheritance.inhparent = part.relation
    JOIN pg_catalog.pg_class class ON class.oid = inheritance.inhrelid AND class.relispartition
)
SELECT NULL::text AS tenant, schema.nspname::text AS schema, class.relname::text AS name,
       class.relispartition OR published.tablename IS NOT NULL AS is_published,
       CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
           AS identity,
       virtual.has AS has_virtual_columns,
       class.relpersistence = 'p' AS is_permanent,
       pg_has_role(class.relowner, 'USAGE') AS is_ours,
       pg_get_userbyid(class.relowner)::text AS owner
FROM part
JOIN pg_catalog.pg_class class ON class.oid = part.relation
JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_attribute attribute
        WHERE attribute.attrelid = class.oid AND attribute.attgenerated = 'v' AND NOT attribute.attisdropped
    ) AS has
) virtual
LEFT JOIN pg_catalog.pg_publication_tables published
    ON published.pubname = $1 AND published.schemaname = schema.nspname AND published.tablename = class.relname
WHERE NOT class.relispartition OR (class.relreplident = 'f') = virtual.has
ORDER BY 2, 3

-- Every table of a tenant, and whether a publication has it. A partition is published by its root, and only named here
-- when it has not the replica identity that it should, which each has for itself. $1 text: publication.
SELECT tenant.name AS tenant, schema.nspname::text AS schema, class.relname::text AS name,
       class.relispartition OR published.tablename IS NOT NULL AS is_published,
       CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
           AS identity,
       virtual.has AS has_virtual_columns,
       pg_has_role(class.relowner, 'USAGE') AS is_ours
FROM posduif.tenants tenant
JOIN pg_catalog.pg_namespace schema ON schema.nspname = tenant.schema_name
JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_attribute attribute
        WHERE attribute.attrelid = class.oid AND attribute.attgenerated = 'v' AND NOT attribute.attisdropped
    ) AS has
) virtual
LEFT JOIN pg_catalog.pg_publication_tables published
    ON published.pubname = $1 AND published.schemaname = schema.nspname AND published.tablename = class.relname
WHERE class.relkind IN ('r', 'p')
  AND class.relpersistence = 'p'
  AND (NOT class.relispartition OR (class.relreplident = 'f') = virtual.has)
ORDER BY tenant.name, class.relname

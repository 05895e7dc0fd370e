-- The tables of one tenant or of all, and whether a publication contains them. A partition is published through its root; it
-- appears here only when its replica identity is wrong, which each partition has for itself. The identity must be FULL, so
-- that the log carries whole old rows; with virtual generated columns (Postgres 18), which are never published, it must not
-- be FULL, because updates of the table would fail. $1 text: publication; $2 text: schema, null for all tenants.
SELECT tenant.name AS tenant, schema.nspname::text AS schema, class.relname::text AS name,
       class.relispartition OR published.tablename IS NOT NULL AS is_published,
       CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
           AS identity,
       virtual.has AS has_virtual_columns,
       class.relpersistence = 'p' AS is_permanent,
       pg_has_role(class.relowner, 'USAGE') AS is_ours,
       pg_get_userbyid(class.relowner)::text AS owner
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
  AND (NOT class.relispartition OR (class.relreplident = 'f') = virtual.has)
  AND ($2::text IS NULL OR schema.nspname = $2)
ORDER BY tenant.name, class.relname

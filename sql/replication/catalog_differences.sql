-- The tables of tenants whose state in the catalogs differs from the recorded one, both states side by side. A table that is
-- new has no recorded state, one that is gone no present one. $1 text: publication; $2 text: tenant, null for all.
-- An entry of `columns` has number, type, a hash of the value that rows written before the column have, and name.
WITH present AS (
    SELECT tenant.name AS tenant, class.oid AS relation, class.relname::text AS name,
           coalesce(root.relname, class.relname)::text AS root,
           coalesce(inheritance.inhparent, 0::oid) AS parent, class.relfilenode AS filenode,
           CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
               AS identity,
           coalesce((class.relispartition OR published.tablename IS NOT NULL) AND publication.pubinsert
                    AND publication.pubupdate AND publication.pubdelete AND publication.pubtruncate
                    AND publication.pubviaroot, false) AS is_published,
           coalesce(form.columns, '{}') AS columns,
           (class.relreplident = 'f') <> coalesce(form.has_virtual, false) AS is_identified
    FROM posduif.tenants tenant
    JOIN pg_catalog.pg_namespace schema ON schema.nspname = tenant.schema_name
    JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid
    LEFT JOIN pg_catalog.pg_publication publication ON publication.pubname = $1
    LEFT JOIN pg_catalog.pg_publication_tables published
        ON published.pubname = $1 AND published.schemaname = schema.nspname AND published.tablename = class.relname
    LEFT JOIN pg_catalog.pg_inherits inheritance ON class.relispartition AND inheritance.inhrelid = class.oid
    LEFT JOIN pg_catalog.pg_class root ON class.relispartition AND root.oid = pg_partition_root(class.oid)
    CROSS JOIN LATERAL (
        SELECT array_agg(concat_ws(' ', attribute.attnum, attribute.atttypid,
                                   coalesce(md5(attribute.attmissingval::text), '-'), attribute.attname)
                         ORDER BY attribute.attnum) AS columns,
               bool_or(attribute.attgenerated = 'v') AS has_virtual
        FROM pg_catalog.pg_attribute attribute
        WHERE attribute.attrelid = class.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
    ) form
    WHERE class.relkind IN ('r', 'p') AND class.relpersistence = 'p' AND ($2::text IS NULL OR tenant.name = $2)
), known AS (
    SELECT * FROM posduif.tables WHERE $2::text IS NULL OR tenant = $2
)
SELECT tenant, relation,
       present.name, present.root, present.parent, present.filenode, present.identity, present.is_published,
       present.columns, present.is_identified,
       known.name AS known_name, known.root AS known_root, known.parent AS known_parent, known.filenode AS known_filenode,
       known.identity AS known_identity, known.is_published AS known_published, known.columns AS known_columns,
       known.is_present AS was_present,
       EXISTS (SELECT FROM pg_catalog.pg_namespace schema WHERE schema.nspname = 'tenant_' || tenant) AS has_schema,
       EXISTS (SELECT FROM pg_catalog.pg_class class WHERE class.oid = relation) AS still_exists,
       -- Not for all tenants: it waits for locks.
       $2::text IS NOT NULL AND coalesce(pg_relation_size(relation::regclass), 0) > 0 AS has_pages
FROM present FULL JOIN known USING (tenant, relation)
WHERE CASE
    WHEN present.name IS NULL THEN known.is_present
    WHEN known.name IS NULL THEN true
    ELSE NOT known.is_present
         OR (present.name, present.root, present.parent, present.filenode, present.identity, present.is_published,
             present.columns)
            IS DISTINCT FROM (known.name, known.root, known.parent, known.filenode, known.identity, known.is_published,
                              known.columns)
END
ORDER BY tenant, relation

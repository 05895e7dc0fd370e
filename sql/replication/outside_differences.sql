-- The tables outside of tenants' schemas that are named, with their partitions, whose state in the catalogs differs from the
-- recorded one, or which this role could repair; both states side by side as in catalog_differences.sql. A table that is new has
-- no recorded state, one that is gone no present one. It waits for no lock: of a table that another transaction locks,
-- `is_locked` is true and `has_pages` unknown. $1 text: publication; $2 text[], $3 text[]: schemas and names of tables;
-- $4 boolean: whether to examine their files.
WITH RECURSIVE part AS (
    SELECT class.oid AS relation, class.oid AS root
    FROM unnest($2::text[], $3::text[]) AS place (schema, name)
    JOIN pg_catalog.pg_namespace schema ON schema.nspname = place.schema
    JOIN pg_catalog.pg_class class ON class.relnamespace = schema.oid AND class.relname = place.name
    WHERE class.relkind IN ('r', 'p') AND class.relpersistence = 'p'
    UNION
    SELECT class.oid, part.root
    FROM part
    JOIN pg_catalog.pg_inherits inheritance ON inheritance.inhparent = part.relation
    JOIN pg_catalog.pg_class class ON class.oid = inheritance.inhrelid AND class.relispartition
), present AS (
    SELECT class.oid AS relation, schema.nspname::text AS schema, class.relname::text AS name,
           root_schema.nspname::text AS root_schema, root.relname::text AS root,
           CASE WHEN class.oid = root.oid THEN 0::oid ELSE inheritance.inhparent END AS parent,
           class.relfilenode AS filenode,
           CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
               AS identity,
           listed.is_listed,
           coalesce(listed.is_listed AND publication.pubinsert AND publication.pubupdate AND publication.pubdelete
                    AND publication.pubtruncate AND publication.pubviaroot, false) AS is_published,
           coalesce(form.columns, '{}') AS columns,
           (class.relreplident = 'f') <> coalesce(form.has_virtual, false) AS is_identified,
           pg_has_role(class.relowner, 'USAGE') AS is_ours
    FROM part
    JOIN pg_catalog.pg_class class ON class.oid = part.relation
    JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
    JOIN pg_catalog.pg_class root ON root.oid = part.root
    JOIN pg_catalog.pg_namespace root_schema ON root_schema.oid = root.relnamespace
    LEFT JOIN pg_catalog.pg_inherits inheritance ON class.relispartition AND inheritance.inhrelid = class.oid
    LEFT JOIN pg_catalog.pg_publication publication ON publication.pubname = $1
    LEFT JOIN pg_catalog.pg_publication_tables published
        ON published.pubname = $1 AND published.schemaname = schema.nspname AND published.tablename = class.relname
    CROSS JOIN LATERAL (
        SELECT class.oid <> root.oid OR published.tablename IS NOT NULL AS is_listed
    ) listed
    CROSS JOIN LATERAL (
        SELECT array_agg(concat_ws(' ', attribute.attnum, attribute.atttypid,
                                   coalesce(md5(attribute.attmissingval::text), '-'), attribute.attname)
                         ORDER BY attribute.attnum) AS columns,
               bool_or(attribute.attgenerated = 'v') AS has_virtual
        FROM pg_catalog.pg_attribute attribute
        WHERE attribute.attrelid = class.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
    ) form
), known AS (
    SELECT * FROM posduif.outside_tables
), locked AS (
    SELECT DISTINCT lock.relation
    FROM pg_catalog.pg_locks lock
    WHERE $4 AND lock.locktype = 'relation' AND lock.mode = 'AccessExclusiveLock'
      AND lock.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
)
SELECT relation, coalesce(present.schema, known.schema_name) AS schema,
       coalesce(present.root_schema, known.root_schema) AS root_schema,
       present.name, present.root, present.parent, present.filenode, present.identity, present.is_published,
       present.columns, present.is_identified, present.is_listed, present.is_ours,
       known.name AS known_name, known.root AS known_root, known.parent AS known_parent, known.filenode AS known_filenode,
       known.identity AS known_identity, known.is_published AS known_published, known.columns AS known_columns,
       known.is_present AS was_present,
       true AS has_schema,
       EXISTS (SELECT FROM pg_catalog.pg_class class WHERE class.oid = relation) AS still_exists,
       locked.relation IS NOT NULL AS is_locked,
       CASE WHEN NOT $4 OR locked.relation IS NOT NULL THEN false
            ELSE coalesce(pg_relation_size(relation::regclass), 0) > 0
       END AS has_pages
FROM present
FULL JOIN known USING (relation)
LEFT JOIN locked USING (relation)
WHERE CASE
    WHEN present.name IS NULL THEN known.is_present
    WHEN known.name IS NULL THEN true
    ELSE NOT known.is_present
         OR present.is_ours AND NOT (present.is_listed AND present.is_identified)
         OR (present.schema, present.name, present.root_schema, present.root, present.parent, present.filenode,
             present.identity, present.is_published, present.columns)
            IS DISTINCT FROM (known.schema_name, known.name, known.root_schema, known.root, known.parent, known.filenode,
                              known.identity, known.is_published, known.columns)
END
ORDER BY 2, present.parent <> 0, 4, relation

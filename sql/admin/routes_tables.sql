-- The tables of rules and groups: one row for each that is named, or for each tenant that has or lacks it. $1 text: publication;
-- $2 text[], $3 text[]: schemas and names of tables; an empty schema is that of each tenant; $4 text: a tenant, null for all.
-- An entry of `indexes` has the columns of a valid unique index, sorted; of `leading`, the first column of any index.
SELECT place.number, place.name AS named, tenant.name AS tenant, schema.nspname::text AS schema, class.relname::text AS name,
       class.relkind::text AS kind, coalesce(class.relispartition, false) AS is_partition,
       coalesce(class.relpersistence = 'p', false) AS is_permanent,
       CASE class.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END
           AS identity,
       coalesce(form.has_virtual, false) AS has_virtual,
       published.tablename IS NOT NULL AS is_published,
       coalesce(pg_has_role(class.relowner, 'USAGE'), false) AS is_ours,
       pg_get_userbyid(class.relowner)::text AS owner, current_user::text AS role,
       coalesce(has_schema_privilege(schema.oid, 'USAGE'), false) AS may_use,
       ARRAY(SELECT privilege FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
             WHERE class.oid IS NOT NULL AND has_table_privilege(class.oid, privilege)) AS privileges,
       coalesce(row_security_active(class.oid), false) AS is_filtered,
       coalesce(form.names, '{}') AS columns, coalesce(form.types, '{}') AS types,
       coalesce(form.id_source, '') AS id_source,
       coalesce(indexed.uniques, '{}') AS uniques, coalesce(indexed.leading, '{}') AS leading
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS place (schema, name, number)
LEFT JOIN posduif.tenants tenant ON place.schema = '' AND ($4::text IS NULL OR tenant.name = $4)
LEFT JOIN pg_catalog.pg_namespace schema
    ON schema.nspname = CASE place.schema WHEN '' THEN tenant.schema_name ELSE place.schema END
LEFT JOIN pg_catalog.pg_class class
    ON class.relnamespace = schema.oid AND class.relname = place.name AND class.relkind IN ('r', 'p', 'v', 'm', 'f')
LEFT JOIN pg_catalog.pg_publication_tables published
    ON published.pubname = $1 AND published.schemaname = schema.nspname AND published.tablename = class.relname
LEFT JOIN LATERAL (
    SELECT array_agg(attribute.attname::text ORDER BY attribute.attnum) AS names,
           array_agg(format_type(attribute.atttypid, attribute.atttypmod) ORDER BY attribute.attnum) AS types,
           bool_or(attribute.attgenerated = 'v') AS has_virtual,
           max(CASE
               WHEN attribute.attname <> 'id' THEN NULL
               WHEN attribute.attidentity = 'a' OR attribute.attgenerated <> '' THEN 'always'
               WHEN attribute.attidentity = 'd' OR pg_get_expr(initial.adbin, initial.adrelid) LIKE 'nextval(%'
               THEN 'sequence'
           END) AS id_source
    FROM pg_catalog.pg_attribute attribute
    LEFT JOIN pg_catalog.pg_attrdef initial
        ON initial.adrelid = attribute.attrelid AND initial.adnum = attribute.attnum
    WHERE attribute.attrelid = class.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
) form ON true
LEFT JOIN LATERAL (
    SELECT array_agg(entry.names) FILTER (WHERE entry.is_unique) AS uniques, array_agg(entry.first) AS leading
    FROM (
        SELECT index.indisunique AND (index.indpred IS NULL OR pg_get_expr(index.indpred, class.oid) = '(deleted_at IS NULL)')
                   AS is_unique,
               (SELECT string_agg(attribute.attname::text, ',' ORDER BY attribute.attname)
                FROM pg_catalog.pg_attribute attribute
                WHERE attribute.attrelid = class.oid AND attribute.attnum = ANY (index.indkey[0:index.indnkeyatts - 1])) AS names,
               (SELECT attribute.attname::text FROM pg_catalog.pg_attribute attribute
                WHERE attribute.attrelid = class.oid AND attribute.attnum = index.indkey[0]) AS first
        FROM pg_catalog.pg_index index
        WHERE index.indrelid = class.oid AND index.indisvalid
    ) entry
    WHERE entry.first IS NOT NULL
) indexed ON true
WHERE place.schema <> '' OR tenant.name IS NOT NULL
ORDER BY place.number, tenant.name

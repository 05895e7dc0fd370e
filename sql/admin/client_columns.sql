-- The columns of a table for types of clients, in order. A domain counts as its base type; labels only of an enum.
-- $1: qualified, quoted table name.
SELECT a.attname::text AS name, a.atttypid::oid AS type_oid,
       CASE WHEN coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace
            THEN coalesce(b.typname, t.typname)::text END AS built_in,
       NOT (a.attnotnull OR t.typnotnull) AS is_nullable,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum AS e
        WHERE e.enumtypid = coalesce(b.oid, t.oid)) AS labels
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_type AS b ON t.typtype = 'd' AND b.oid = t.typbasetype
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum

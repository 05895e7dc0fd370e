-- The columns of a table as in the log: not dropped, not generated; a domain's type under its base type's name.
-- Each row contains about how many bytes a row of the table has on disk, null before the table was analyzed.
-- $1: qualified, quoted table name.
SELECT a.attname::text AS name, a.atttypid::oid AS type_oid, coalesce(b.typname, t.typname)::text AS type_name,
       CASE WHEN coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace THEN '' ELSE 'user' END AS namespace,
       (SELECT (8192.0 * (c.relpages + coalesce(apart.relpages, 0)) / c.reltuples)::bigint
        FROM pg_class AS c LEFT JOIN pg_class AS apart ON apart.oid = c.reltoastrelid
        WHERE c.oid = a.attrelid AND c.reltuples > 0 AND c.relpages > 0) AS row_bytes
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_type AS b ON t.typtype = 'd' AND b.oid = t.typbasetype
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum

-- Tables of a schema that have another replica identity than they should, and which that is: FULL, so that the log carries whole old
-- rows; DEFAULT, that of the primary key, where a table has virtual generated columns (Postgres 18), which are never published, so
-- that no identity may hold them and with FULL its owner's UPDATE fails. $1 text: schema.
SELECT class.relname::text, CASE WHEN virtual.has THEN 'DEFAULT' ELSE 'FULL' END AS identity
FROM pg_catalog.pg_class class
JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_attribute attribute
        WHERE attribute.attrelid = class.oid AND attribute.attgenerated = 'v' AND NOT attribute.attisdropped
    ) AS has
) virtual
WHERE schema.nspname = $1 AND class.relkind IN ('r', 'p') AND (class.relreplident = 'f') = virtual.has
ORDER BY class.relname

-- Tables of a schema that lack REPLICA IDENTITY FULL and can have it. $1 text: schema.
-- Virtual generated columns (Postgres 18) are never published, so that no identity may hold them.
SELECT class.relname::text
FROM pg_catalog.pg_class class
JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
WHERE schema.nspname = $1 AND class.relkind IN ('r', 'p') AND class.relreplident <> 'f'
  AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute attribute
      WHERE attribute.attrelid = class.oid AND attribute.attgenerated = 'v' AND NOT attribute.attisdropped
  )
ORDER BY class.relname

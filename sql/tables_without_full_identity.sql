-- Tables of a schema that lack REPLICA IDENTITY FULL. $1 text: schema.
SELECT class.relname::text
FROM pg_catalog.pg_class class
JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
WHERE schema.nspname = $1 AND class.relkind IN ('r', 'p') AND class.relreplident <> 'f'
ORDER BY class.relname

-- Those of some tables with memberships in which a group and a member may stand twice: no unique index is on just the two
-- columns. One that leaves out rows with `deleted_at` is good enough.
-- $1 text[]: names of tables; $2 text[], $3 text[]: their columns with the group and the member.
SELECT t.schema_name AS schema, c.relname AS table, g.id_column, g.user_column
FROM unnest($1, $2, $3) AS g (table_name, id_column, user_column)
CROSS JOIN posduif.tenants t
JOIN pg_namespace n ON n.nspname = t.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = g.table_name AND c.relkind IN ('r', 'p')
WHERE NOT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 2
      AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:1]))
          = (SELECT array_agg(name ORDER BY name) FROM unnest(ARRAY[g.id_column, g.user_column]) AS name)
)
ORDER BY 1, 2

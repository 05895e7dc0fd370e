-- Those of some tables in which ids are not unique: none of their unique indexes is on the column id alone.
-- $1 text[]: names of tables.
SELECT t.schema_name AS schema, c.relname AS table
FROM posduif.tenants t
JOIN pg_namespace n ON n.nspname = t.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = ANY ($1) AND c.relkind IN ('r', 'p')
WHERE NOT EXISTS (
    SELECT FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
      AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum
)
ORDER BY 1, 2

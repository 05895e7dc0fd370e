-- The columns required to write a row of a table again unchanged: the type of its id, and a column that may be set.
-- $1: qualified, quoted table name.
SELECT format_type(id.atttypid, id.atttypmod) AS id_type, free.attname::text AS free_column
FROM pg_attribute AS id
CROSS JOIN LATERAL (
    SELECT a.attname FROM pg_attribute AS a
    WHERE a.attrelid = id.attrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a'
    ORDER BY a.attnum LIMIT 1
) AS free
WHERE id.attrelid = to_regclass($1) AND id.attname = 'id' AND NOT id.attisdropped

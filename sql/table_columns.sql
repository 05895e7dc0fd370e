-- The columns of a table as the log shows them: not dropped, not generated. $1: qualified, quoted table name.
SELECT a.attname::text AS name, a.atttypid::oid AS type_oid, t.typname::text AS type_name
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum

-- The columns of a partitioned table that are never NULL, and those that may be in a replica identity of the table or of a
-- partition: the columns of a unique index. No row for other tables. It locks nothing. $1 oid: table.
WITH RECURSIVE part AS (
    SELECT $1::oid AS relation
    UNION
    SELECT inhrelid FROM pg_catalog.pg_inherits JOIN part ON inhparent = relation
)
SELECT ARRAY(SELECT attname::text FROM pg_catalog.pg_attribute
             WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped AND attnotnull) AS required,
       ARRAY(SELECT DISTINCT attribute.attname::text
             FROM part
             JOIN pg_catalog.pg_index index ON index.indrelid = part.relation AND index.indisunique
             JOIN pg_catalog.pg_attribute attribute
                 ON attribute.attrelid = part.relation AND attribute.attnum = ANY (index.indkey)) AS identifying
FROM pg_catalog.pg_class class WHERE class.oid = $1 AND class.relkind = 'p'

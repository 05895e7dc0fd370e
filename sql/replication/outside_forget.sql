-- Records that no rule or group names a table any more: one that still exists may return. $1 oid: table.
WITH renamed AS (
    UPDATE posduif.outside_tables SET is_present = false
    WHERE relation = $1 AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1)
)
DELETE FROM posduif.outside_tables
WHERE relation = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1)

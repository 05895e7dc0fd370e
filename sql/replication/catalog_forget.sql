-- Records that a table is not in a tenant's schema any more: one that still exists may return. $1 text: tenant; $2 oid: table.
WITH moved AS (
    UPDATE posduif.tables SET is_present = false
    WHERE tenant = $1 AND relation = $2 AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $2)
)
DELETE FROM posduif.tables
WHERE tenant = $1 AND relation = $2 AND NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $2)

-- The schema in which a table is by now, which may not be the one that the log names. A table that is recorded as a
-- tenant's and is elsewhere is marked as moved, so that its return is noticed even if no look comes in between. No row when
-- the table is gone. $1 oid: table.
WITH place AS (
    SELECT schema.nspname::text AS schema
    FROM pg_catalog.pg_class class JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
    WHERE class.oid = $1
), moved AS (
    UPDATE posduif.tables known SET is_present = false
    FROM posduif.tenants tenant, place
    WHERE known.relation = $1 AND known.is_present AND tenant.name = known.tenant
      AND tenant.schema_name <> place.schema
)
SELECT schema FROM place

-- Records that the session which holds the slot routes no tables outside of tenants' schemas but these and their partitions:
-- changes of others pass without entries, and a later session that routes one finds that it returned. $1 text[], $2 text[]:
-- schemas and names.
UPDATE posduif.outside_tables SET is_present = false
WHERE is_present AND NOT EXISTS (
    SELECT FROM unnest($1::text[], $2::text[]) AS place (schema, name)
    WHERE place.schema = root_schema AND place.name = root
)

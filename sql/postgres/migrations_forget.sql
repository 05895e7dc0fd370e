-- Removes the version of a dropped schema. $1 text: schema.
DELETE FROM posduif.schema_migrations WHERE schema_name = $1

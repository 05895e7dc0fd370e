-- Forgets the version of a schema that is dropped. $1 text: schema.
DELETE FROM posduif.schema_migrations WHERE schema_name = $1

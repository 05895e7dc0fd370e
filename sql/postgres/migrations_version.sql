-- A schema's version, if it has one. $1 text: schema.
SELECT version, dirty FROM posduif.schema_migrations WHERE schema_name = $1

-- Whether a migration has run in this database.
SELECT to_regclass('posduif.schema_migrations') IS NOT NULL

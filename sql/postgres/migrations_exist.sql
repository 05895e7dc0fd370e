-- Whether any migration has ever run here.
SELECT to_regclass('posduif.schema_migrations') IS NOT NULL

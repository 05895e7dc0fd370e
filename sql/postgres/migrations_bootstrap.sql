-- The prerequisites of the first migration: the schema and the table of versions.
CREATE SCHEMA IF NOT EXISTS posduif;
CREATE TABLE IF NOT EXISTS posduif.schema_migrations (
    schema_name text PRIMARY KEY,
    version     integer NOT NULL CHECK (version >= 0),
    dirty       boolean NOT NULL DEFAULT false,
    applied_at  timestamptz NOT NULL DEFAULT now()
);

-- The tables outside of the tenants' schemas that rules and groups name, and their partitions, as the engine last saw them in
-- the catalogs: as posduif.tables, which has those of the tenants' schemas.
CREATE TABLE posduif.outside_tables (
    relation     oid PRIMARY KEY,
    schema_name  text NOT NULL,
    name         text NOT NULL,
    -- The table under whose name its rows are published: the root of a partition.
    root_schema  text NOT NULL,
    root         text NOT NULL,
    -- 0 unless it is a partition.
    parent       oid NOT NULL,
    filenode     oid NOT NULL,
    identity     text NOT NULL,
    is_published boolean NOT NULL,
    columns      text[] NOT NULL,
    -- Whether it is published with the identity that it needs.
    is_covered   boolean NOT NULL,
    -- Whether a rule or a group names it, or its root. A table that was renamed may return.
    is_present   boolean NOT NULL
);

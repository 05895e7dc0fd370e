-- The tables of the tenants as the engine last saw them in the catalogs: a change of a table that is in no log is found by
-- comparison, also after a restart.
CREATE TABLE posduif.tables (
    tenant       text NOT NULL REFERENCES posduif.tenants ON DELETE CASCADE,
    relation     oid NOT NULL,
    name         text NOT NULL,
    -- The table under whose name its rows are published: the root of a partition.
    root         text NOT NULL,
    -- 0 unless it is a partition.
    parent       oid NOT NULL,
    filenode     oid NOT NULL,
    identity     text NOT NULL,
    is_published boolean NOT NULL,
    columns      text[] NOT NULL,
    -- Whether it is published with the identity that it needs.
    is_covered   boolean NOT NULL,
    -- Whether it is in the tenant's schema. One that was moved out, or whose schema was renamed, may return.
    is_present   boolean NOT NULL,
    PRIMARY KEY (tenant, relation)
);

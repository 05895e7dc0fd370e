-- The schemas that a publication contains whole (Postgres 15). $1 text: publication.
SELECT schema.nspname::text AS schema_name
FROM pg_catalog.pg_publication_namespace entry
JOIN pg_catalog.pg_publication publication ON publication.oid = entry.pnpubid
JOIN pg_catalog.pg_namespace schema ON schema.oid = entry.pnnspid
WHERE publication.pubname = $1

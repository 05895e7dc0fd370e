-- One row if a publication contains a whole schema. $1 text: publication; $2 text: schema.
SELECT 1
FROM pg_catalog.pg_publication_namespace entry
JOIN pg_catalog.pg_publication publication ON publication.oid = entry.pnpubid
JOIN pg_catalog.pg_namespace schema ON schema.oid = entry.pnnspid
WHERE publication.pubname = $1 AND schema.nspname = $2

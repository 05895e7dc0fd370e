-- Tables of a schema that a publication lacks, and whether this role owns them; a partition is published through its root.
-- $1 text: publication; $2 text: schema.
SELECT class.relname::text, pg_has_role(class.relowner, 'USAGE') AS is_ours
FROM pg_catalog.pg_class class
JOIN pg_catalog.pg_namespace schema ON schema.oid = class.relnamespace
WHERE schema.nspname = $2
  AND class.relkind IN ('r', 'p')
  AND class.relpersistence = 'p'
  AND NOT class.relispartition
  AND NOT EXISTS (
      SELECT
      FROM pg_catalog.pg_publication_rel entry
      JOIN pg_catalog.pg_publication publication ON publication.oid = entry.prpubid
      WHERE publication.pubname = $1 AND entry.prrelid = class.oid
  )
ORDER BY class.relname

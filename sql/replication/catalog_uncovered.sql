-- Recorded tables that are not published with the identity that they need, qualified; a few of them. And the table of
-- commands, unless it is published. $1 text: publication.
(SELECT 'tenant_' || tenant || '.' || name AS name FROM posduif.tables
 WHERE is_present AND NOT is_covered
 ORDER BY 1 LIMIT 20)
UNION ALL
(SELECT schema_name || '.' || name FROM posduif.outside_tables
 WHERE is_present AND NOT is_covered
 ORDER BY 1 LIMIT 20)
UNION ALL
SELECT 'posduif.commands'
WHERE NOT EXISTS (
    SELECT
    FROM pg_catalog.pg_publication publication
    LEFT JOIN pg_catalog.pg_publication_rel entry ON entry.prpubid = publication.oid
    WHERE publication.pubname = $1
      AND (publication.puballtables OR entry.prrelid = to_regclass('posduif.commands'))
)

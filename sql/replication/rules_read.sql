-- The digests of the rules of each table, as they were recorded last.
SELECT tables FROM posduif.routing

-- Recorded tables that are not published with the identity that they need, qualified; a few of them.
SELECT 'tenant_' || tenant || '.' || name AS name FROM posduif.tables
WHERE is_present AND NOT is_covered
ORDER BY 1 LIMIT 20

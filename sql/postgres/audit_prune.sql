-- Removes the oldest entries of the audit log that are older than so many days, and returns their number. $1 bigint: days;
-- $2 bigint: most rows.
WITH pruned AS (
    DELETE FROM posduif.audit WHERE id IN (
        SELECT id FROM posduif.audit WHERE at < now() - $1 * interval '1 day' ORDER BY at LIMIT $2
    )
    RETURNING id
)
SELECT count(*) AS pruned FROM pruned

-- A page of a user's conflicts: after an offset or before a conflict, newest first, or after it, oldest first. Each row contains whether that
-- conflict exists and, without one, the length of the list; a page without rows is one row with these alone.
-- $1 uuid: user; $2 uuid or null: only this one; $3 boolean or null: only open or resolved ones; $4 bigint: most rows;
-- $5 bigint: offset; $6 uuid or null: the conflict; $7 boolean: after it, else before it.
WITH place AS (
    SELECT created_at, id FROM {schema}.message_conflicts WHERE id = $6 AND user_id = $1
), before AS (
    SELECT * FROM {schema}.message_conflicts
    WHERE NOT $7 AND ($6 IS NULL OR (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place)))
      AND user_id = $1 AND ($2 IS NULL OR id = $2) AND ($3 IS NULL OR (resolved_at IS NULL) = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT $4 OFFSET $5
), after AS (
    SELECT * FROM {schema}.message_conflicts
    WHERE $7 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND user_id = $1 AND ($2 IS NULL OR id = $2) AND ($3 IS NULL OR (resolved_at IS NULL) = $3)
    ORDER BY created_at, id
    LIMIT $4
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT $6 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $6 IS NULL
            THEN (SELECT count(*) FROM {schema}.message_conflicts
                  WHERE user_id = $1 AND ($2 IS NULL OR id = $2) AND ($3 IS NULL OR (resolved_at IS NULL) = $3)) END AS total,
       page.*, CASE WHEN m.id IS NOT NULL THEN {schema}.message_json(m) END AS message
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
LEFT JOIN {schema}.messages m ON m.id = page.message_id AND m.deleted_at IS NULL
ORDER BY CASE WHEN $7 THEN page.created_at END, CASE WHEN $7 THEN page.id END, page.created_at DESC, page.id DESC

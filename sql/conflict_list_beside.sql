-- A user's conflicts right before a conflict, or right after it, newest first, each with whether that one is known. Without
-- any, one row with that alone. $1 uuid: user; $2 boolean or null: only open or resolved ones; $3 bigint: most rows;
-- $4 uuid: the conflict; $5 boolean: after it, else before it.
WITH place AS (
    SELECT created_at, id FROM {schema}.message_conflicts WHERE id = $4 AND user_id = $1
), before AS (
    SELECT * FROM {schema}.message_conflicts
    WHERE NOT $5 AND (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place))
      AND user_id = $1 AND ($2 IS NULL OR (resolved_at IS NULL) = $2)
    ORDER BY created_at DESC, id DESC
    LIMIT $3
), after AS (
    SELECT * FROM {schema}.message_conflicts
    WHERE $5 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND user_id = $1 AND ($2 IS NULL OR (resolved_at IS NULL) = $2)
    ORDER BY created_at, id
    LIMIT $3
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT EXISTS (SELECT FROM place) AS is_known, page.*,
       CASE WHEN m.id IS NOT NULL THEN {schema}.message_json(m) END AS message
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
LEFT JOIN {schema}.messages m ON m.id = page.message_id AND m.deleted_at IS NULL
ORDER BY page.created_at DESC, page.id DESC

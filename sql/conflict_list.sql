-- A page of a user's conflicts, newest first, and the total; a page beyond the end is one row with nothing but the total.
-- $1 uuid: user; $2 uuid or null: only this one; $3 boolean or null: only open or resolved ones; $4 bigint: limit;
-- $5 bigint: offset.
WITH found AS (
    SELECT * FROM {schema}.message_conflicts
    WHERE user_id = $1
      AND ($2 IS NULL OR id = $2)
      AND ($3 IS NULL OR (resolved_at IS NULL) = $3)
), page AS (
    SELECT * FROM found ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5
)
SELECT counted.total, page.*, CASE WHEN m.id IS NOT NULL THEN {schema}.message_json(m) END AS message
FROM (SELECT count(*) AS total FROM found) counted
LEFT JOIN page ON true
LEFT JOIN {schema}.messages m ON m.id = page.message_id AND m.deleted_at IS NULL
ORDER BY page.created_at DESC, page.id DESC

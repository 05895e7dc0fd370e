-- A page of a user's messages, newest first, and the total; a page beyond the end is one row with nothing but the total.
-- $1 uuid: user; $2 uuid or null: recipient; $3 text or null: status; $4 bigint: limit; $5 bigint: offset.
WITH found AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE (sender_id = $1 OR recipient_id = $1)
      AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2)
      AND ($3 IS NULL OR status = $3)
), page AS (
    SELECT * FROM found ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5
)
SELECT counted.total, page.*
FROM (SELECT count(*) AS total FROM found) counted
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC

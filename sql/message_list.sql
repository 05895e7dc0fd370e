-- A page of a user's messages, newest first, and the total; a page beyond the end is one row with nothing but the total.
-- $1 uuid: user; $2 uuid or null: recipient; $3 text or null: status; $4 bigint: limit; $5 bigint: offset.
-- What was sent and what came are read apart, each along its index and no further than the page reaches.
WITH sent AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE sender_id = $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT least($4::numeric + $5::numeric, 9223372036854775807)::bigint
), got AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT least($4::numeric + $5::numeric, 9223372036854775807)::bigint
), page AS (
    SELECT * FROM (TABLE sent UNION ALL TABLE got) AS found ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5
), counted AS (
    SELECT count(*) AS total
    FROM {schema}.messages
    WHERE (sender_id = $1 OR recipient_id = $1) AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
)
SELECT counted.total, page.*
FROM counted
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC

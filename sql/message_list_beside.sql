-- A user's messages right before a message, or right after it, newest first, each with whether that message is known: it is
-- when the user sent or got it, deleted or not. Without any, one row with that alone. $1 uuid: user; $2 uuid or null:
-- recipient; $3 text or null: status; $4 bigint: most rows; $5 uuid: the message; $6 boolean: after it, else before it.
-- What was sent and what came are read apart, each along its index and no further than the page reaches.
WITH place AS (
    SELECT created_at, id FROM {schema}.messages WHERE id = $5 AND (sender_id = $1 OR recipient_id = $1)
), sent_before AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE NOT $6 AND (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place))
      AND sender_id = $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT $4
), got_before AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE NOT $6 AND (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place))
      AND recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT $4
), before AS (
    SELECT * FROM (TABLE sent_before UNION ALL TABLE got_before) AS found ORDER BY created_at DESC, id DESC LIMIT $4
), sent_after AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE $6 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND sender_id = $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at, id
    LIMIT $4
), got_after AS (
    SELECT id, sender_id, recipient_id, content, status, version, created_at, updated_at, synced_at, read_at
    FROM {schema}.messages
    WHERE $6 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at, id
    LIMIT $4
), after AS (
    SELECT * FROM (TABLE sent_after UNION ALL TABLE got_after) AS found ORDER BY created_at, id LIMIT $4
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT EXISTS (SELECT FROM place) AS is_known, page.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC

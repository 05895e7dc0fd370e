-- A page of a user's messages, newest first: after an offset, before a message, or after it. Each row contains whether the user
-- sent or received that message, deleted or not, and the length of the list if requested; a page without rows is one row with
-- these alone.
-- $1 uuid: user; $2 uuid or null: recipient; $3 text or null: status; $4 bigint: most rows; $5 bigint: offset;
-- $6 uuid or null: the message; $7 boolean: after it, else before it; $8 boolean: whether to count.
-- Sent and received messages are read separately, each along its index and no further than the page. Without a status the
-- index alone gives position and length; rows are fetched for the page only.
WITH place AS (
    SELECT created_at, id FROM {schema}.messages WHERE id = $6 AND (sender_id = $1 OR recipient_id = $1)
), sent_before AS (
    SELECT created_at, id FROM {schema}.messages
    WHERE NOT $7 AND ($6 IS NULL OR (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place)))
      AND sender_id = $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT least($4::numeric + $5::numeric, 9223372036854775807)::bigint
), got_before AS (
    SELECT created_at, id FROM {schema}.messages
    WHERE NOT $7 AND ($6 IS NULL OR (created_at, id) < ((SELECT created_at FROM place), (SELECT id FROM place)))
      AND recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at DESC, id DESC
    LIMIT least($4::numeric + $5::numeric, 9223372036854775807)::bigint
), before AS (
    SELECT id FROM (TABLE sent_before UNION ALL TABLE got_before) AS found
    ORDER BY created_at DESC, id DESC
    LIMIT $4 OFFSET $5
), sent_after AS (
    SELECT created_at, id FROM {schema}.messages
    WHERE $7 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND sender_id = $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at, id
    LIMIT $4
), got_after AS (
    SELECT created_at, id FROM {schema}.messages
    WHERE $7 AND (created_at, id) > ((SELECT created_at FROM place), (SELECT id FROM place))
      AND recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
      AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)
    ORDER BY created_at, id
    LIMIT $4
), after AS (
    SELECT id FROM (TABLE sent_after UNION ALL TABLE got_after) AS found ORDER BY created_at, id LIMIT $4
), page AS (
    SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision,
           created_at, updated_at, synced_at, read_at
    FROM (TABLE before UNION ALL TABLE after) AS found
    JOIN {schema}.messages USING (id)
)
SELECT $6 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $8 THEN (SELECT count(*) FROM {schema}.messages
                          WHERE sender_id = $1 AND deleted_at IS NULL
                            AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3))
                       + (SELECT count(*) FROM {schema}.messages
                          WHERE recipient_id = $1 AND sender_id <> $1 AND deleted_at IS NULL
                            AND ($2 IS NULL OR recipient_id = $2) AND ($3 IS NULL OR status = $3)) END AS total,
       page.*, pg_current_snapshot()::text AS snapshot
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC

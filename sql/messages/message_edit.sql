-- Replaces the content of a message; no row when there is none. $1 uuid: id; $2 uuid: user; $3 text: content.
WITH found AS (
    SELECT id, sender_id = $2 AS allowed FROM {schema}.messages WHERE id = $1 AND deleted_at IS NULL
), changed AS (
    UPDATE {schema}.messages message
    SET content = $3
    FROM found
    WHERE message.id = found.id AND found.allowed AND message.deleted_at IS NULL
    RETURNING message.*
)
SELECT found.allowed, changed.* FROM found LEFT JOIN changed ON true

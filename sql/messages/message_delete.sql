-- Marks a message deleted; no row when there is none. $1 uuid: id; $2 uuid: user.
WITH found AS (
    SELECT id, sender_id = $2 AS allowed FROM {schema}.messages WHERE id = $1 AND deleted_at IS NULL
), changed AS (
    UPDATE {schema}.messages message
    SET deleted_at = now()
    FROM found
    WHERE message.id = found.id AND found.allowed AND message.deleted_at IS NULL
    RETURNING message.*
)
SELECT found.allowed, changed.* FROM found LEFT JOIN changed ON true

-- Marks a message read unless it is; no row when there is none. $1 uuid: id; $2 uuid: user.
-- A repetition keeps the first time and creates no new version.
WITH found AS (
    SELECT id, recipient_id = $2 AS allowed FROM {schema}.messages WHERE id = $1 AND deleted_at IS NULL
), changed AS (
    UPDATE {schema}.messages message
    SET read_at = coalesce(message.read_at, now()), status = 'read'
    FROM found
    WHERE message.id = found.id AND found.allowed AND message.deleted_at IS NULL
    RETURNING message.*
)
SELECT found.allowed, changed.* FROM found LEFT JOIN changed ON true

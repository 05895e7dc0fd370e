-- Replaces the content of a message; no row when there is none. $1 uuid: id; $2 uuid: user; $3 text: content; $4 text: the
-- tenant's schema; $5 jsonb: the memberships of each kind of group, and the values that name the user in them.
WITH found AS (
    SELECT id, sender_id = $2
               AND (group_id IS NULL OR coalesce({schema}.is_member($4, $5 -> group_name, group_id), false)) AS allowed
    FROM {schema}.messages WHERE id = $1 AND deleted_at IS NULL
), changed AS (
    UPDATE {schema}.messages message
    SET content = $3
    FROM found
    WHERE message.id = found.id AND found.allowed AND message.deleted_at IS NULL
    RETURNING message.*
)
SELECT found.allowed, changed.* FROM found LEFT JOIN changed ON true

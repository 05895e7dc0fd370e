-- Marks a message read unless it is; no row when there is none. A repetition keeps the first time and creates no new version. A
-- message to a group stays as it is, and the user's mark moves to it, never back.
-- $1 uuid: id; $2 uuid: user; $3 text: the tenant's schema; $4 jsonb: the memberships of each kind of group, and the values that
-- name the user in them.
WITH found AS (
    SELECT message.*, CASE WHEN group_id IS NULL THEN recipient_id = $2
                           ELSE coalesce({schema}.is_member($3, $4 -> group_name, group_id), false) END AS allowed
    FROM {schema}.messages message WHERE id = $1 AND deleted_at IS NULL
), changed AS (
    UPDATE {schema}.messages message
    SET read_at = coalesce(message.read_at, now()), status = 'read'
    FROM found
    WHERE message.id = found.id AND found.allowed AND found.group_id IS NULL AND message.deleted_at IS NULL
    RETURNING message.*
), in_group AS MATERIALIZED (
    SELECT message.*, {schema}.mark_read($2, message) AS is_moved
    FROM found JOIN {schema}.messages message ON message.id = found.id
    WHERE found.allowed AND found.group_id IS NOT NULL AND message.deleted_at IS NULL
)
SELECT found.allowed, shown.*
FROM found
LEFT JOIN (
    SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision, created_at,
           updated_at, synced_at, read_at FROM changed UNION ALL SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision, created_at,
           updated_at, synced_at, read_at FROM in_group
) AS shown ON true

-- Creates a message to a group if the sender is a member; one row. The sender is locked, so that erasing the sender waits for the
-- message, or goes before it.
-- $1 uuid: sender; $2 text: the tenant's schema; $3 jsonb: the memberships of the kind of group, and the values that name the
-- sender in them; $4, $5 text: name and id of the group; $6 text: content.
WITH sender AS (
    SELECT id FROM {schema}.users WHERE id = $1 AND deleted_at IS NULL AND disabled_at IS NULL
    FOR SHARE
)
SELECT EXISTS (SELECT FROM sender) AS sender_is_active, {schema}.is_member($2, $3, $5) IS NULL AS is_unknown, created.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN LATERAL (
    SELECT message.* FROM sender, {schema}.send_to_group(sender.id, $2, $3, $4, $5, $6) AS message
) AS created ON true

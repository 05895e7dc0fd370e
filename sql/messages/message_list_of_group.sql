-- A page of the messages of a group, newest first: after an offset, before a message, or after it. Each row contains whether the
-- user is a member, whether that message is one of the group, deleted or not, and the length of the list if requested; a page
-- without rows is one row with these alone.
-- $1 text: the tenant's schema; $2 jsonb: the memberships of the kind of group, and the values that name the user in them;
-- $3, $4 text: name and id of the group; $5 bigint: most rows; $6 bigint: offset; $7 uuid or null: the message; $8 boolean:
-- after it, else before it; $9 boolean: whether to count.
WITH member AS MATERIALIZED (
    SELECT coalesce({schema}.is_member($1, $2, $4), false) AS is_member
), place AS (
    SELECT number FROM {schema}.messages WHERE id = $7 AND group_id = $4 AND group_name = $3
), before AS (
    SELECT id FROM {schema}.messages
    WHERE NOT $8 AND (SELECT is_member FROM member) AND ($7 IS NULL OR number < (SELECT number FROM place))
      AND group_id = $4 AND group_name = $3 AND deleted_at IS NULL
    ORDER BY number DESC
    LIMIT $5 OFFSET $6
), after AS (
    SELECT id FROM {schema}.messages
    WHERE $8 AND (SELECT is_member FROM member) AND number > (SELECT number FROM place)
      AND group_id = $4 AND group_name = $3 AND deleted_at IS NULL
    ORDER BY number
    LIMIT $5
), page AS (
    SELECT id, sender_id, recipient_id, group_name, group_id, number, content, status, version, revision, created_at, updated_at,
           synced_at, read_at
    FROM (TABLE before UNION ALL TABLE after) AS found
    JOIN {schema}.messages USING (id)
)
SELECT $7 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $9 AND (SELECT is_member FROM member)
            THEN (SELECT count(*) FROM {schema}.messages
                  WHERE group_id = $4 AND group_name = $3 AND deleted_at IS NULL) END AS total,
       page.*, (SELECT is_member FROM member) AS is_member
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.number DESC

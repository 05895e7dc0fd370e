-- Users right before a user, or right after it, by username, each with whether that user is known. Without any, one row with
-- that alone. $1 text or null: user_type; $2 text or null: part of the username; $3 boolean or null: online;
-- $4 uuid[]: who is online; $5 bigint: most rows; $6 uuid: the user, deleted or not; $7 boolean: before it, else after it.
WITH place AS (
    SELECT lower(username) AS name, id FROM {schema}.users WHERE id = $6
), before AS (
    SELECT id, username, user_type, last_seen, created_at, disabled_at
    FROM {schema}.users
    WHERE $7 AND (lower(username), id) < ((SELECT name FROM place), (SELECT id FROM place))
      AND deleted_at IS NULL
      AND ($1 IS NULL OR user_type = $1)
      AND ($2 IS NULL OR position(lower($2) IN lower(username)) > 0)
      AND ($3 IS NULL OR (id = ANY ($4)) = $3)
    ORDER BY lower(username) DESC, id DESC
    LIMIT $5
), after AS (
    SELECT id, username, user_type, last_seen, created_at, disabled_at
    FROM {schema}.users
    WHERE NOT $7 AND (lower(username), id) > ((SELECT name FROM place), (SELECT id FROM place))
      AND deleted_at IS NULL
      AND ($1 IS NULL OR user_type = $1)
      AND ($2 IS NULL OR position(lower($2) IN lower(username)) > 0)
      AND ($3 IS NULL OR (id = ANY ($4)) = $3)
    ORDER BY lower(username), id
    LIMIT $5
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT EXISTS (SELECT FROM place) AS is_known, page.*, device.device_id
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
LEFT JOIN LATERAL (
    SELECT d.device_id
    FROM {schema}.devices d
    WHERE d.user_id = page.id AND d.revoked_at IS NULL
    ORDER BY d.created_at DESC, d.device_id
    LIMIT 1
) device ON true
ORDER BY lower(page.username), page.id

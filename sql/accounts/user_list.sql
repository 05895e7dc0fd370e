-- A page of users by username: after an offset, before a user, or after it. Each row contains whether that user exists,
-- deleted or not, and the length of the list if requested; a page without rows is one row with these alone.
-- $1 text or null: user_type; $2 text or null: part of the username; $3 boolean or null: among $4, or not; $4 uuid[];
-- $5 bigint: most rows; $6 bigint: offset; $7 uuid or null: the user; $8 boolean: before it, else after it;
-- $9 boolean: whether to count.
WITH place AS (
    SELECT lower(username) AS name, id FROM {schema}.users WHERE id = $7
), found AS NOT MATERIALIZED (
    SELECT id, username, user_type, role, last_seen, created_at, disabled_at
    FROM {schema}.users
    WHERE deleted_at IS NULL
      AND ($1 IS NULL OR user_type = $1)
      AND ($2 IS NULL OR position(lower($2) IN lower(username)) > 0)
      AND ($3 IS NULL OR (id = ANY ($4)) = $3)
), before AS (
    SELECT * FROM found
    WHERE $8 AND (lower(username), id) < ((SELECT name FROM place), (SELECT id FROM place))
    ORDER BY lower(username) DESC, id DESC
    LIMIT $5
), after AS (
    SELECT * FROM found
    WHERE NOT $8 AND ($7 IS NULL OR (lower(username), id) > ((SELECT name FROM place), (SELECT id FROM place)))
    ORDER BY lower(username), id
    LIMIT $5 OFFSET $6
), page AS (
    TABLE before UNION ALL TABLE after
)
SELECT $7 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $9 THEN (SELECT count(*) FROM found) END AS total, page.*, device.device_id,
       pg_current_snapshot()::text AS snapshot
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

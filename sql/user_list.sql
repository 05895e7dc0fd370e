-- A page of users by username, and the total; a page beyond the end is one row with nothing but the total.
-- $1 text or null: user_type; $2 text or null: part of the username; $3 boolean or null: among $4,
-- or not; $4 uuid[]; $5 bigint: limit; $6 bigint: offset.
WITH found AS (
    SELECT id, username, user_type, last_seen, created_at, disabled_at
    FROM {schema}.users
    WHERE deleted_at IS NULL
      AND ($1 IS NULL OR user_type = $1)
      AND ($2 IS NULL OR position(lower($2) IN lower(username)) > 0)
      AND ($3 IS NULL OR (id = ANY ($4)) = $3)
), page AS (
    SELECT * FROM found ORDER BY lower(username), id LIMIT $5 OFFSET $6
)
SELECT counted.total, page.*, device.device_id
FROM (SELECT count(*) AS total FROM found) counted
LEFT JOIN page ON true
LEFT JOIN LATERAL (
    SELECT d.device_id
    FROM {schema}.devices d
    WHERE d.user_id = page.id AND d.revoked_at IS NULL
    ORDER BY d.created_at DESC, d.device_id
    LIMIT 1
) device ON true
ORDER BY lower(page.username), page.id

-- Devices of a user, or of all mobile users for a web user, newest first, and the total; a page beyond the end is one
-- row with nothing but the total. $1 uuid or null: who asks, without whom all are shown; $2 text or null: their type; $3 uuid or null: only this user's; $4 text or
-- null: only this device; $5 boolean or null: only revoked ones, or only others; $6 bigint: limit; $7 bigint: offset.
WITH found AS (
    SELECT d.device_id, d.user_id, u.username, d.name, d.device_type, d.public_key, d.public_key_changed_at,
           d.device_info, d.created_at, d.revoked_at,
           greatest(d.last_seen_at, s.last_sync_timestamp) AS last_seen_at
    FROM {schema}.devices d
    JOIN {schema}.users u ON u.id = d.user_id
    LEFT JOIN {schema}.sync_metadata s USING (device_id)
    WHERE ($1 IS NULL OR u.id = $1 OR ($2 = 'web' AND u.user_type = 'mobile'))
      AND ($3 IS NULL OR d.user_id = $3)
      AND ($4 IS NULL OR d.device_id = $4)
      AND ($5 IS NULL OR (d.revoked_at IS NOT NULL) = $5)
), page AS (
    SELECT * FROM found ORDER BY created_at DESC, device_id LIMIT $6 OFFSET $7
)
SELECT counted.total, page.*
FROM (SELECT count(*) AS total FROM found) counted
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.device_id

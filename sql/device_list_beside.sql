-- Devices right before a device, or right after it, newest first, each with whether that one is known to who asks. Without
-- any, one row with that alone. $1 uuid or null: who asks, without whom all are shown; $2 text or null: their type; $3 uuid
-- or null: only this user's; $4 boolean or null: only revoked ones, or only others; $5 bigint: most rows; $6 text: the device; $7 boolean: after it, else before it.
-- Devices made at the same time follow by id the other way round, as they always have.
WITH seen AS (
    SELECT d.device_id, d.user_id, u.username, d.name, d.device_type, d.public_key, d.public_key_changed_at,
           d.device_info, d.created_at, d.revoked_at,
           greatest(d.last_seen_at, s.last_sync_timestamp) AS last_seen_at
    FROM {schema}.devices d
    JOIN {schema}.users u ON u.id = d.user_id
    LEFT JOIN {schema}.sync_metadata s USING (device_id)
    WHERE ($1 IS NULL OR u.id = $1 OR ($2 = 'web' AND u.user_type = 'mobile'))
), place AS (
    SELECT created_at, device_id FROM seen WHERE device_id = $6
), found AS (
    SELECT seen.*
    FROM seen, place
    WHERE ($3 IS NULL OR seen.user_id = $3)
      AND ($4 IS NULL OR (seen.revoked_at IS NOT NULL) = $4)
      AND $7 = (seen.created_at > place.created_at
                OR (seen.created_at = place.created_at AND seen.device_id < place.device_id))
      AND seen.device_id <> place.device_id
), page AS (
    SELECT * FROM found
    ORDER BY CASE WHEN $7 THEN created_at END, CASE WHEN $7 THEN device_id END DESC,
             CASE WHEN NOT $7 THEN created_at END DESC, CASE WHEN NOT $7 THEN device_id END
    LIMIT $5
)
SELECT EXISTS (SELECT FROM place) AS is_known, page.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.device_id

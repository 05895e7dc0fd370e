-- A page of devices, newest first: after an offset, before a device, or after it. Each row contains whether that device is
-- visible to the viewer and, without one, the length of the list; a page without rows is one row with these alone.
-- $1 uuid or null: viewer, null for all devices; $2 text or null: the viewer's type; $3 uuid or null: only of this user;
-- $4 text or null: only this device; $5 boolean or null: only revoked ones, or only others; $6 bigint: most rows;
-- $7 bigint: offset; $8 text or null: the device; $9 boolean: after it, else before it.
-- Devices created at the same time are in descending order of their ids.
WITH seen AS NOT MATERIALIZED (
    SELECT d.device_id, d.user_id, u.username, d.name, d.device_type, d.public_key, d.public_key_changed_at,
           d.device_info, d.created_at, d.revoked_at,
           greatest(d.last_seen_at, s.last_sync_timestamp) AS last_seen_at
    FROM {schema}.devices d
    JOIN {schema}.users u ON u.id = d.user_id
    LEFT JOIN {schema}.sync_metadata s USING (device_id)
    WHERE $1 IS NULL OR u.id = $1 OR ($2 = 'web' AND u.user_type = 'mobile')
), place AS (
    SELECT created_at, device_id FROM seen WHERE device_id = $8
), found AS NOT MATERIALIZED (
    SELECT * FROM seen
    WHERE ($3 IS NULL OR user_id = $3)
      AND ($4 IS NULL OR device_id = $4)
      AND ($5 IS NULL OR (revoked_at IS NOT NULL) = $5)
), page AS (
    SELECT * FROM found
    WHERE $8 IS NULL
       OR (device_id <> $8
           AND $9 = (created_at > (SELECT created_at FROM place)
                     OR (created_at = (SELECT created_at FROM place) AND device_id < $8)))
    ORDER BY CASE WHEN $9 THEN created_at END, CASE WHEN $9 THEN device_id END DESC,
             CASE WHEN NOT $9 THEN created_at END DESC, CASE WHEN NOT $9 THEN device_id END
    LIMIT $6 OFFSET $7
)
SELECT $8 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $8 IS NULL THEN (SELECT count(*) FROM found) END AS total, page.*
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.device_id

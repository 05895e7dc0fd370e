-- A page of devices, newest first: after an offset, before a device, or after it. Each row contains whether that device is
-- one of the user's and, without one, the length of the list; a page without rows is one row with these alone.
-- $1 uuid or null: only of this user; $2 text or null: only this device; $3 boolean or null: only revoked ones, or only
-- others; $4 bigint: most rows; $5 bigint: offset; $6 text or null: the device; $7 boolean: after it, else before it;
-- $8 text: tenant.
-- Devices created at the same time are in descending order of their ids.
WITH seen AS NOT MATERIALIZED (
    SELECT d.device_id, d.user_id, u.username, d.name, d.device_type, d.public_key, d.public_key_changed_at,
           d.device_info, d.created_at, d.revoked_at, d.token_renewed_at,
           greatest(d.last_seen_at, s.last_sync_timestamp) AS last_seen_at
    FROM {schema}.devices d
    JOIN {schema}.users u ON u.id = d.user_id
    LEFT JOIN {schema}.sync_metadata s USING (device_id)
    WHERE $1 IS NULL OR u.id = $1
), place AS (
    SELECT created_at, device_id FROM seen WHERE device_id = $6
), found AS NOT MATERIALIZED (
    SELECT * FROM seen
    WHERE ($2 IS NULL OR device_id = $2)
      AND ($3 IS NULL OR (revoked_at IS NOT NULL) = $3)
), page AS (
    SELECT * FROM found
    WHERE $6 IS NULL
       OR (device_id <> $6
           AND $7 = (created_at > (SELECT created_at FROM place)
                     OR (created_at = (SELECT created_at FROM place) AND device_id < $6)))
    ORDER BY CASE WHEN $7 THEN created_at END, CASE WHEN $7 THEN device_id END DESC,
             CASE WHEN NOT $7 THEN created_at END DESC, CASE WHEN NOT $7 THEN device_id END
    LIMIT $4 OFFSET $5
)
SELECT $6 IS NULL OR EXISTS (SELECT FROM place) AS is_known,
       CASE WHEN $6 IS NULL THEN (SELECT count(*) FROM found) END AS total, page.*,
       EXISTS (SELECT FROM posduif.devices known
               WHERE known.tenant = $8 AND known.device_id = page.device_id AND known.auth_key IS NOT NULL) AS has_auth_key
FROM (VALUES (1)) AS one (row)
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.device_id

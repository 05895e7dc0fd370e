-- Writes what devices did since the last time. Arrays of the same length:
-- $1 device ids, $2 times of the last sync, $3 reported outgoing counts (null: unchanged), $4 errors (null: none).
WITH news AS (
    SELECT * FROM unnest($1, $2, $3, $4) AS n (device_id, at, pending, error)
), seen AS (
    UPDATE {schema}.devices AS d SET last_seen_at = n.at FROM news AS n WHERE d.device_id = n.device_id
    RETURNING d.device_id, d.user_id, n.at
), users_seen AS (
    UPDATE {schema}.users AS u SET last_seen = s.at
    FROM (SELECT user_id, max(at) AS at FROM seen GROUP BY user_id) AS s WHERE u.id = s.user_id
)
INSERT INTO {schema}.sync_metadata AS m
    (device_id, last_sync_timestamp, pending_outgoing_count, sync_status, last_error, updated_at)
SELECT n.device_id, CASE WHEN n.error IS NULL THEN n.at END, coalesce(n.pending, 0),
       CASE WHEN n.error IS NULL THEN 'idle' ELSE 'error' END, n.error, now()
FROM news AS n JOIN seen AS s USING (device_id)
ON CONFLICT (device_id) DO UPDATE SET
    last_sync_timestamp = coalesce(excluded.last_sync_timestamp, m.last_sync_timestamp),
    pending_outgoing_count = CASE WHEN excluded.device_id = ANY($1) AND $3[array_position($1, excluded.device_id)] IS NULL
                                  THEN m.pending_outgoing_count ELSE excluded.pending_outgoing_count END,
    sync_status = excluded.sync_status,
    last_error = excluded.last_error,
    updated_at = excluded.updated_at

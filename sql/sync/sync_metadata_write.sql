-- Records the activity of devices since the last write. Arrays of the same length: $1 device ids, $2 when they were seen, $3
-- when they synced (null: unchanged), $4 reported outgoing counts (null: unchanged), $5 statuses (null: no error), $6 errors
-- (null: none).
WITH news AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6) AS n (device_id, seen, synced, pending, status, error)
), locked AS (
    -- Users before their devices, the order in which removing a user locks them: the reverse order would deadlock.
    SELECT u.id FROM {schema}.users AS u
    WHERE u.id IN (SELECT d.user_id FROM {schema}.devices AS d WHERE d.device_id = ANY ($1))
    ORDER BY u.id FOR NO KEY UPDATE
), seen AS (
    UPDATE {schema}.devices AS d SET last_seen_at = n.seen FROM news AS n, locked AS l
    WHERE d.device_id = n.device_id AND d.user_id = l.id
    RETURNING d.device_id, d.user_id, n.seen
), users_seen AS (
    UPDATE {schema}.users AS u SET last_seen = s.at
    FROM (SELECT user_id, max(seen) AS at FROM seen GROUP BY user_id) AS s WHERE u.id = s.user_id
), rows AS (
    SELECT n.device_id, coalesce(n.synced, m.last_sync_timestamp) AS synced,
           coalesce(n.pending, m.pending_outgoing_count, 0) AS pending,
           coalesce(n.status, nullif(m.sync_status, 'error'), 'idle') AS status, n.error
    FROM news AS n JOIN seen AS s USING (device_id) LEFT JOIN {schema}.sync_metadata AS m USING (device_id)
)
INSERT INTO {schema}.sync_metadata AS m
    (device_id, last_sync_timestamp, pending_outgoing_count, sync_status, last_error, updated_at)
SELECT device_id, synced, pending, status, error, now() FROM rows
ON CONFLICT (device_id) DO UPDATE SET
    last_sync_timestamp = excluded.last_sync_timestamp,
    pending_outgoing_count = excluded.pending_outgoing_count,
    sync_status = excluded.sync_status,
    last_error = excluded.last_error,
    updated_at = excluded.updated_at

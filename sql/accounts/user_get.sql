-- One user, and the snapshot of the statement. $1 uuid: id.
SELECT u.id, u.username, u.user_type, u.role, u.last_seen, u.created_at, u.disabled_at, device.device_id,
       pg_current_snapshot()::text AS snapshot
FROM {schema}.users u
LEFT JOIN LATERAL (
    SELECT d.device_id
    FROM {schema}.devices d
    WHERE d.user_id = u.id AND d.revoked_at IS NULL
    ORDER BY d.created_at DESC, d.device_id
    LIMIT 1
) device ON true
WHERE u.id = $1 AND u.deleted_at IS NULL

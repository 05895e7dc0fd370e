-- A page of all devices that can be notified: not revoked, and their users active. $1 text: after this device; $2 bigint:
-- page size.
SELECT d.device_id, d.user_id, (extract(epoch FROM d.created_at) * 1000000)::bigint AS enrolled_micros
FROM {schema}.devices AS d
JOIN {schema}.users AS u ON u.id = d.user_id AND u.disabled_at IS NULL AND u.deleted_at IS NULL
WHERE d.device_id > $1 AND d.revoked_at IS NULL
ORDER BY d.device_id
LIMIT $2

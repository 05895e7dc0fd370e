-- A page of users, each with the devices that delay trimming: not revoked, and seen in the last days.
-- $1: after this id, $2: page size, $3: days.
SELECT u.id AS user_id,
       coalesce(array_agg(d.device_id) FILTER (WHERE d.device_id IS NOT NULL), '{}') AS devices
FROM (SELECT id FROM {schema}.users WHERE id > $1 ORDER BY id LIMIT $2) AS u
LEFT JOIN {schema}.devices AS d
    ON d.user_id = u.id AND d.revoked_at IS NULL
    AND coalesce(d.last_seen_at, d.created_at) > now() - make_interval(secs => $3 * 86400)
GROUP BY u.id
ORDER BY u.id

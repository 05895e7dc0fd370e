-- A user's devices, each with whether it delays trimming: not revoked, and seen in the last days.
-- $1 uuid: user; $2: days.
SELECT device_id, name, revoked_at IS NOT NULL AS is_revoked,
       revoked_at IS NULL
           AND coalesce(last_seen_at, created_at) > now() - make_interval(secs => $2 * 86400) AS holds
FROM {schema}.devices WHERE user_id = $1 ORDER BY device_id

-- The device that a token speaks for, unless revoked. $1 bytea: SHA-256 of the token; $2 text: device id.
SELECT tenant, user_id, first_used_at IS NULL AS is_first_use
FROM posduif.devices
WHERE token_hash = $1 AND device_id = $2 AND revoked_at IS NULL

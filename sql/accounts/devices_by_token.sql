-- The devices of tokens, unless revoked. $1 bytea[]: SHA-256 of each token; $2 text[]: the device id sent with it.
SELECT devices.token_hash, devices.device_id, tenant, user_id, first_used_at IS NULL AS is_first_use
FROM unnest($1, $2) AS asked (token_hash, device_id)
JOIN posduif.devices USING (token_hash, device_id)
WHERE revoked_at IS NULL

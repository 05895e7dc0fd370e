-- Replaces token and key of a device that has not used the token; no row when it has, or is revoked.
-- $1 text: tenant; $2 text: device id; $3 bytea: SHA-256 of the new token; $4 bytea or null: the key.
UPDATE posduif.devices directory
SET token_hash = $3, auth_key = $4, issued_at = now()
FROM {schema}.users owner
WHERE directory.tenant = $1 AND directory.device_id = $2
  AND directory.first_used_at IS NULL AND directory.revoked_at IS NULL
  AND owner.id = directory.user_id AND owner.deleted_at IS NULL AND owner.disabled_at IS NULL
RETURNING owner.id AS user_id, owner.username

-- A user's state under a key, unless deleted. $1 uuid: user; $2 text: key.
SELECT key, state, nonce, version, device_id, created_at, updated_at
FROM {schema}.encrypted_states
WHERE user_id = $1 AND key = $2 AND deleted_at IS NULL

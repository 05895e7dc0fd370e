-- A page of a user's states by id, without deleted ones. $1 uuid: user; $2 uuid: after this id; $3 bigint: most rows.
SELECT id, key, state, nonce, version, device_id, created_at, updated_at
FROM {schema}.encrypted_states
WHERE user_id = $1 AND deleted_at IS NULL AND id > $2
ORDER BY id
LIMIT $3

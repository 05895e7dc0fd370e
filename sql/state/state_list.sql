-- A page of a user's states in the order of their ids, deleted ones left out. $1 uuid: user; $2 uuid: behind this one;
-- $3 bigint: most rows.
SELECT id, key, state, nonce, version, device_id, created_at, updated_at
FROM {schema}.encrypted_states
WHERE user_id = $1 AND deleted_at IS NULL AND id > $2
ORDER BY id
LIMIT $3

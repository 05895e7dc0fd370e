-- A user whose password was checked against this hash, unless it was changed or the user disabled or deleted since.
-- $1 text: tenant; $2 uuid: user; $3 text: the verified hash.
SELECT u.id, u.username, u.user_type, u.role, c.stamp
FROM {schema}.users u
JOIN posduif.credentials c ON c.tenant = $1 AND c.user_id = u.id
WHERE u.id = $2 AND c.password_hash = $3 AND u.deleted_at IS NULL AND u.disabled_at IS NULL

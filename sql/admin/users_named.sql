-- Those of these users that a tenant has. $1 uuid[]: users.
SELECT id, username, disabled_at IS NOT NULL AS is_disabled, deleted_at IS NOT NULL AS is_deleted
FROM {schema}.users WHERE id = ANY ($1)
ORDER BY username
